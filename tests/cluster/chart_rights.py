"""A cluster as the chart's service account may use it, through a proxy that sees what it does."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from harness.recording import RecordingProxy, context_of
from harness.toolchain import ROOT, kubernetes_program

Right = tuple[str, str, str]
"""Group, resource and verb."""


class Limited(NamedTuple):
    """What an `Operator` of the tests takes for a cluster; `settings` are its further ones."""

    cluster: Any
    kubeconfig: Path
    settings: dict[str, Any]
    granted: set[Right]
    proxy: RecordingProxy

    def environment(self) -> dict[str, str]:
        return self.cluster.environment() | {"KUBECONFIG": str(self.kubeconfig)}


@contextlib.contextmanager
def limited_cluster(apiserver: Any, namespace: str, folder: Path, *, single: bool) -> Iterator[Limited]:
    """Install the chart's roles; with `single`, those of an installation for that namespace only."""
    values = ["--set", f"watchNamespaces={{{namespace}}}", "--set", "clusterID=test"] if single else []
    command = [
        kubernetes_program("helm"), "template", namespace, str(ROOT / "charts" / "lunaq"),
        "--kube-version=1.34.0", f"--namespace={namespace}", "--show-only=templates/rbac.yaml",
        "--show-only=templates/serviceaccount.yaml", *values,
    ]  # fmt: skip
    rendered = subprocess.run(
        command, capture_output=True, text=True, check=True, env=apiserver.environment()
    ).stdout
    apiserver.apply(rendered)
    server, tls = context_of(apiserver.kubeconfig)
    proxy = RecordingProxy(server, tls).start()
    try:
        token = apiserver.kubectl("create", "token", f"{namespace}-lunaq", "-n", namespace).stdout.strip()
        settings: dict[str, Any] = {"lease_name": f"{namespace}-lunaq", "lease_namespace": namespace}
        # The default is read from the cluster, where it may be.
        settings |= {"namespaces": [namespace]} if single else {"cluster_id": ""}
        yield Limited(apiserver, proxy.kubeconfig(token, folder), settings, _granted(rendered), proxy)
    finally:
        proxy.stop()
        apiserver.kubectl("delete", "-f", "-", "--ignore-not-found", input=rendered)


def _granted(rendered: str) -> set[Right]:
    return {
        (group, resource, verb)
        for obj in yaml.safe_load_all(rendered)
        if obj
        for rule in obj.get("rules") or ()
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
