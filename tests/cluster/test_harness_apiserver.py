"""The API server that the other tests stand on does what they take for granted."""

import json

import pytest

from harness.kubernetes import Cluster, KubectlError
from harness.waiting import wait_for


def config_map(name: str, namespace: str, **metadata: object) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, **metadata},
        "data": {"greeting": "hello"},
    }


def test_what_is_applied_can_be_read(apiserver: Cluster, namespace: str) -> None:
    apiserver.apply([config_map("one", namespace), config_map("two", namespace)])
    found = apiserver.get("configmap", "two", "-n", namespace)
    assert found["data"] == {"greeting": "hello"}
    assert apiserver.get("configmap", "three", "-n", namespace) is None


def test_rbac_decides_what_a_service_account_may_do(apiserver: Cluster, namespace: str) -> None:
    worker = f"system:serviceaccount:{namespace}:worker"
    apiserver.kubectl("create", "serviceaccount", "worker", "-n", namespace)
    with pytest.raises(KubectlError, match="forbidden"):
        apiserver.kubectl("get", "configmaps", "-n", namespace, as_user=worker)
    apiserver.kubectl("create", "role", "reader", "--verb=list", "--resource=configmaps", "-n", namespace)
    apiserver.kubectl(
        *("create", "rolebinding", "reader", "--role=reader", "-n", namespace),
        f"--serviceaccount={namespace}:worker",
    )
    wait_for(
        lambda: apiserver.kubectl("get", "configmaps", "-n", namespace, as_user=worker, check=False).stdout,
        "the new binding to take effect",
    )


def test_what_an_object_owns_goes_with_it(apiserver: Cluster, namespace: str) -> None:
    apiserver.apply(config_map("owner", namespace))
    uid = apiserver.get("configmap", "owner", "-n", namespace)["metadata"]["uid"]
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}
    apiserver.apply(config_map("owned", namespace, ownerReferences=[reference]))
    apiserver.kubectl("delete", "configmap", "owner", "-n", namespace)
    wait_for(
        lambda: apiserver.get("configmap", "owned", "-n", namespace) is None,
        "the garbage collector to delete what is owned",
        timeout=60,
    )


def test_controllers_make_a_deployments_pods(apiserver: Cluster, namespace: str) -> None:
    apiserver.kubectl("create", "deployment", "idle", "--image=example.test/idle:1", "-n", namespace)
    pods = wait_for(
        lambda: apiserver.get("pods", "-n", namespace, "-l", "app=idle")["items"], "the Deployment's pod"
    )
    assert pods[0]["spec"]["serviceAccountName"] == "default"


@pytest.mark.usefixtures("crds")
def test_our_kinds_are_served(apiserver: Cluster) -> None:
    answer = json.loads(apiserver.kubectl("get", "--raw=/apis/lunaq.dev/v1alpha1").stdout)
    kinds = {resource["kind"] for resource in answer["resources"] if "/" not in resource["name"]}
    assert {"Broker", "Queue", "Consumer"} <= kinds
