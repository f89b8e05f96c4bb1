"""Finds the programs that scripts/setup-* put into the cache.

The scripts and this module agree on the cache's layout through scripts/versions. Called by the
harness modules that start a program.
"""

import os
import platform
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class MissingToolError(RuntimeError):
    """Something a test level runs is not on this machine; the text says what to run."""


def versions() -> dict[str, str]:
    """Give what scripts/versions pins, by name."""
    lines = (ROOT / "scripts" / "versions").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def cache_dir() -> Path:
    """Give the folder that survives checkouts, as scripts/lib.sh names it."""
    if explicit := os.environ.get("LUNAQ_CACHE"):
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lunaq"


def kubernetes_bin() -> Path:
    """Give the folder of Kubernetes' programs, helm and CoreDNS, built or not."""
    pins = versions()
    kubernetes, helm, coredns = pins["KUBERNETES"], pins["HELM"], pins["COREDNS"]
    recipe = f"r{pins['KUBERNETES_RECIPE']}-{platform.machine()}"
    return cache_dir() / f"kubernetes-{kubernetes}-helm-{helm}-coredns-{coredns}-{recipe}"


def kubernetes_program(name: str, setup: str = "scripts/setup-cluster") -> str:
    """Give the path of one of our own builds; MissingToolError names the script that builds it."""
    path = kubernetes_bin() / name
    if not path.is_file():
        raise MissingToolError(f"{name} is not built: run {setup}, or the level's make target")
    return str(path)


def system_program(name: str, setup: str) -> str:
    """Give the path of a program of the system; MissingToolError names the script that installs it."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise MissingToolError(f"{name} is not installed: run {setup}, or the level's make target")
    return found


def rabbitmq_root(suite: str) -> Path:
    """Give the root file system with the RabbitMQ of a Debian suite, or MissingToolError."""
    recipe = f"r{versions()['RABBITMQ_ROOT_RECIPE']}-{platform.machine()}"
    path = cache_dir() / f"rabbitmq-{suite}-{recipe}"
    if not (path / "VERSION").is_file():
        raise MissingToolError(
            f"RabbitMQ of Debian {suite} is not here: run make test-broker, or scripts/setup-brokers all"
        )
    return path


def qpid_library() -> Path:
    """Give the folder with Apache Qpid Broker-J's jars, or MissingToolError."""
    pins = versions()
    path = cache_dir() / f"qpid-{pins['QPID']}-r{pins['QPID_RECIPE']}"
    if not path.is_dir():
        raise MissingToolError(
            "Apache Qpid Broker-J is not here: run scripts/setup-brokers all, or make test-broker"
        )
    return path
