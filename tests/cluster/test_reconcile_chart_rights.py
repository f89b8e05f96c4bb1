"""The rights that the chart gives the operator are enough for all it does."""

import json
import subprocess

import pytest
from operators import Operator

from harness.toolchain import ROOT, kubernetes_program
from harness.waiting import wait_for


class Limited:
    """A cluster as the chart's service account may use it."""

    def __init__(self, cluster, kubeconfig) -> None:
        self._cluster = cluster
        self._kubeconfig = kubeconfig

    def environment(self) -> dict:
        return self._cluster.environment() | {"KUBECONFIG": str(self._kubeconfig)}


@pytest.fixture(params=["cluster-wide", "in one namespace"])
def rights(request, apiserver, crds, namespace, tmp_path):  # noqa: ARG001 - the CRDs must be there
    """Install the chart's roles; yields the limited cluster and the operator's settings."""
    single = request.param != "cluster-wide"
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
    try:
        token = apiserver.kubectl("create", "token", f"{namespace}-lunaq", "-n", namespace).stdout.strip()
        config = json.loads(apiserver.kubectl("config", "view", "--raw", "--minify", "-o", "json").stdout)
        config["users"][0]["user"] = {"token": token}
        kubeconfig = tmp_path / "limited"
        kubeconfig.write_text(json.dumps(config))
        settings = {"lease_name": f"{namespace}-lunaq", "lease_namespace": namespace}
        yield Limited(apiserver, kubeconfig), settings | ({"namespaces": [namespace]} if single else {})
    finally:
        apiserver.kubectl("delete", "-f", "-", "--ignore-not-found", input=rendered)


def test_the_charts_rights_suffice(rights, app, tmp_path):
    limited, settings = rights
    operator = Operator(limited, tmp_path, **settings).start().wait_working()
    try:
        app.secret()
        app.broker()
        app.queue("emails", deletionPolicy="Delete")
        app.allow_consuming()
        app.consumer()
        wait_for(lambda: app.list("pods"), "a pod")
        app.kubectl("delete", "rolebinding", "consume")
        wait_for(
            lambda: "lunaq.dev/policy-checksum" in (app.list("pods")[0]["metadata"].get("annotations") or {}),
            "the pod to be told",
        )
        wait_for(lambda: "Available" in app.reasons_told("Queue", "emails"), "an event")
        app.consumer(serviceAccountName="other")
        wait_for(lambda: app.get("serviceaccount", "worker") is None, "the account to be pruned")
        app.kubectl("delete", "queue", "emails", "--timeout=40s")
        assert app.broker_names() == set()
    finally:
        operator.stop()
    assert "forbidden" not in operator.process.log.read_text().lower()
