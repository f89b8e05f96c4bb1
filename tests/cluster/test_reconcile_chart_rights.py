"""The rights that the chart gives the operator are enough for all it does, and none is never used.

What it uses is seen at a proxy between it and the API server, which knows no rights itself.
"""

import re
import subprocess
import sys
from http import HTTPStatus
from pathlib import Path

import pytest
from chart_rights import Right, limited_cluster
from operators import Operator

from harness.recording import Asked
from harness.waiting import wait_for

IMPLIED = {("lunaq.dev", "consumers/finalizers", "update")}
"""Asked by the API server itself, when an object gets a Consumer as its owner."""
_PATH = re.compile(
    r"/(?:api/v1|apis/(?P<group>[^/]+)/[^/]+)(?:/namespaces/(?P<namespace>[^/]+)(?=/))?"
    r"/(?P<resource>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[^/]+))?\Z"
)
PATIENCE = 120
"""Seconds: everything goes through a proxy in Python, and the machine may be busy."""

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


def used(asked: list[Asked]) -> set[Right]:
    """Translate requests into what RBAC is asked for them."""
    found = set()
    for one in asked:
        at = _PATH.match(one.path)
        if at is None:
            continue  # discovery
        resource = "/".join(filter(None, (at["resource"], at["sub"])))
        if one.method == "GET":
            verb = "get" if at["name"] else "watch" if "watch" in one.query else "list"
        else:
            verb = _VERBS[one.method]
        if one.method == "PATCH" and one.status == HTTPStatus.CREATED:
            found.add((at["group"] or "", resource, "create"))  # server-side apply of what was not there
        found.add((at["group"] or "", resource, verb))
    return found


@pytest.fixture(params=["cluster-wide", "in one namespace"])
def limited(request, apiserver, crds, namespace, tmp_path):  # noqa: ARG001 - the CRDs must be there
    with limited_cluster(apiserver, namespace, tmp_path, single=request.param != "cluster-wide") as found:
        yield found


def test_the_charts_rights_suffice_and_all_are_used(limited, app, tmp_path):
    operator = Operator(limited, tmp_path, **limited.settings).start().wait_working()
    try:
        app.secret()
        app.own_users()
        app.queue("emails", deletionPolicy="Delete")
        app.allow_consuming()
        app.consumer()
        wait_for(lambda: app.list("pods"), "a pod", PATIENCE)
        app.kubectl("delete", "rolebinding", "consume")
        wait_for(
            lambda: "lunaq.dev/policy-checksum" in (app.list("pods")[0]["metadata"].get("annotations") or {}),
            "the pod to be told",
            PATIENCE,
        )
        wait_for(lambda: "Available" in app.reasons_told("Queue", "emails"), "an event", PATIENCE)
        change_the_access(app)
        make_the_broker_flap(app)
        app.consumer(serviceAccountName="other")
        wait_for(lambda: app.get("serviceaccount", "worker") is None, "the account to be pruned", PATIENCE)
        app.consumer(
            serviceAccountName="other",
            handler={"sourceFrom": {"configMapKeyRef": {"name": "code", "key": "main.lua"}}},
        )
        app.wait_reason("consumer", "worker", "HandlerMissing")
        app.kubectl("delete", "consumer", "worker", "--timeout=40s")
        app.kubectl("delete", "queue", "emails", "--timeout=40s")
        assert app.broker_names() == set()
    finally:
        operator.stop()
    release_finalizers(limited, app)
    # Other tests' namespaces are on their way out, and that, too, is said by 403.
    ours = (f"/namespaces/{app.namespace}/", f"/namespaces/{app.namespace}?")
    refused = [
        one
        for one in limited.proxy.asked
        if one.status in (401, 403)
        and ("/namespaces/" not in one.path or any(part in one.path for part in ours))
    ]
    assert refused == []
    asked = used(limited.proxy.asked)
    assert limited.granted - asked - IMPLIED == set(), "granted and never used"
    assert asked <= limited.granted | IMPLIED


def change_the_access(app):
    """Rotate the Consumer's credentials, have it share the Broker's, and give it a user of its own again."""
    before = app.credentials()
    app.kubectl("annotate", "consumer", "worker", "lunaq.dev/rotate=now")
    wait_for(lambda: app.credentials() != before, "other credentials", PATIENCE)
    app.broker()
    wait_for(lambda: app.get("secret", "worker.broker") is None, "the Secret to go", PATIENCE)
    app.own_users()
    wait_for(lambda: app.get("secret", "worker.broker"), "the Secret to come back", PATIENCE)


def make_the_broker_flap(app):
    """Have the same Events told twice, which makes the second a patch of the first."""
    for _ in range(2):
        app.secret(labels={})
        app.wait_reason("broker", "main", "SecretNotLabelled")
        app.secret()
        app.wait_ready("broker", "main")


def release_finalizers(limited, app):
    app.queue("held", deletionPolicy="Delete")
    patch = '{"metadata": {"finalizers": ["lunaq.dev/cleanup"]}}'
    app.kubectl("patch", "queue", "held", "--type=merge", "-p", patch)
    program = Path(sys.executable).parent / "lunaq-operator"
    subprocess.run(
        [program, "release-finalizers", f"--namespace={app.namespace}"],
        env=limited.environment(),
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert "finalizers" not in app.get("queue", "held")["metadata"]


def test_a_right_by_a_cluster_role_is_reported_where_those_cannot_be_read(apiserver, app, crds, tmp_path):  # noqa: ARG001
    operator = Operator(apiserver, tmp_path, namespaces=[app.namespace]).start().wait_working()
    try:
        app.secret()
        app.broker()
        app.queue("emails")
        app.bind("view", "ClusterRole", name="by-cluster-role")
        app.consumer()
        told = app.wait_reason("consumer", "worker", "NotAuthorized")["message"]
        binding = f"RoleBinding {app.namespace}/by-cluster-role"
        assert f"not readable in a namespaced installation: {binding} -> ClusterRole view" in told
        permissions = app.get("consumer", "worker")["status"]["permissions"]
        assert permissions["unresolved"] == [{"binding": binding, "role": "ClusterRole view"}]
        app.allow_consuming()
        wait_for(
            lambda: app.condition("consumer", "worker", "Authorized").get("status") == "True",
            "the Role to count",
        )
    finally:
        operator.stop()
