"""Names the images that the node tests run, building what the sources have changed since.

Called by harness.node.
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from harness.toolchain import ROOT, MissingToolError


@dataclass(frozen=True)
class Images:
    """References of images, as a pod names them.

    Attributes:
        operator: of the operator.
        runtime: of the runtime.
        rabbitmq: of a RabbitMQ with the plugins of Debian's or the official image.
        pull_policy: what pods must say: `Never` where nothing can be pulled.
    """

    operator: str
    runtime: str
    rabbitmq: str
    pull_policy: str

    @staticmethod
    def split(reference: str) -> tuple[str, str]:
        """Give repository and tag of a reference, as the chart's values want them."""
        repository, _, tag = reference.rpartition(":")
        return repository, tag


@dataclass(frozen=True)
class Built:
    """An image in the cache.

    Attributes:
        reference: its name.
        tar: its docker-archive.
    """

    reference: str
    tar: Path


def built_images() -> dict[str, Built]:
    """Build what is not in the cache (nothing, or seconds after a change of source), and give all by name."""
    command = [str(ROOT / "scripts" / "build-images"), "pause", "rabbitmq", "operator", "runtime"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"scripts/build-images failed:\n{done.stdout}{done.stderr}")
    rows = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    return {name: Built(reference, Path(tar)) for name, reference, tar in rows}


def images_of_environment() -> Images:
    """Give the images of LUNAQ_TEST_IMAGE_PREFIX, for a cluster that is not ours."""
    prefix = os.environ.get("LUNAQ_TEST_IMAGE_PREFIX")
    if not prefix:
        raise MissingToolError(
            "LUNAQ_TEST_KUBECONFIG is set but LUNAQ_TEST_IMAGE_PREFIX is not: build both targets of the "
            "Dockerfile, push them as <prefix>lunaq-operator:dev and <prefix>lunaq-runtime:dev, and set it"
        )
    tag = os.environ.get("LUNAQ_TEST_IMAGE_TAG", "dev")
    return Images(
        operator=f"{prefix}lunaq-operator:{tag}",
        runtime=f"{prefix}lunaq-runtime:{tag}",
        rabbitmq=os.environ.get("LUNAQ_TEST_RABBITMQ_IMAGE", "docker.io/library/rabbitmq:4-management"),
        pull_policy="IfNotPresent",
    )
