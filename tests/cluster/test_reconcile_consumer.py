"""Consumers, reconciled by a running operator; there is no kubelet here, so pods stay pending."""

import json
import secrets
import subprocess
from pathlib import Path

import pytest
import yaml

from harness.waiting import wait_for

pytestmark = pytest.mark.usefixtures("operator")


@pytest.fixture
def ready_queue(app):
    app.secret()
    app.broker()
    app.queue("emails")
    app.wait_ready("queue", "emails")
    return app


def policy(app, name="worker"):
    config = app.get("configmap", f"{name}.policy")
    return yaml.safe_load(config["data"]["policy.yaml"])["entries"][0] if config else {}


def replicas(app, name="worker"):
    deployment = app.get("deployment", name)
    return deployment["spec"]["replicas"] if deployment else None


def wait_replicas(app, count):
    wait_for(lambda: replicas(app) == count, f"{count} replicas")


def test_a_consumer_gets_account_entries_policy_and_deployment(ready_queue):
    app = ready_queue
    app.allow_consuming()
    app.consumer(replicas=2)
    wait_replicas(app, 2)
    uid = app.get("consumer", "worker")["metadata"]["uid"]
    for kind, name in (
        ("serviceaccount", "worker"),
        ("configmap", "worker"),
        ("configmap", "worker.policy"),
        ("deployment", "worker"),
    ):
        assert app.get(kind, name)["metadata"]["ownerReferences"][0]["uid"] == uid
    entries = yaml.safe_load(app.get("configmap", "worker")["data"]["entries.yaml"])
    assert any(entry["name"] == f"{app.namespace}:emails" for entry in entries["entries"])
    assert policy(app)["consume"] == [f"{app.namespace}:*"]
    app.wait_reason("consumer", "worker", "Progressing")
    status = app.get("consumer", "worker")["status"]
    assert status["selector"] == "lunaq.dev/consumer=worker"
    assert status["handlerDigest"].startswith("sha256:")
    assert status["queueID"] == f"{app.namespace}:emails"


def pretend_ready(app):
    """Say of a pod what a kubelet would, which there is none of."""
    [pod] = wait_for(lambda: app.list("pods", "-l", "lunaq.dev/consumer=worker"), "a pod")
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    arguments = ("--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))
    app.kubectl("patch", "pod", pod["metadata"]["name"], *arguments)


def paste(app, command):
    """Run a command line in a shell, with kubectl as a person has it."""
    tools = str(Path(app.cluster.program).parent)
    environment = app.cluster.environment()
    environment["PATH"] = f"{tools}:{environment['PATH']}"
    script = ["bash", "-euo", "pipefail", "-c", command]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_the_right_to_consume_there_are_no_replicas_but_the_command_that_grants_it(ready_queue):
    app = ready_queue
    app.consumer()
    told = app.wait_reason("consumer", "worker", "NotAuthorized")
    assert replicas(app) == 0
    command = told["message"].split("grant it with: ")[1]
    for _ in range(2):  # may be pasted again, as after somebody deleted half of it
        paste(app, command)
    wait_replicas(app, 1)
    pretend_ready(app)
    app.wait_ready("consumer", "worker")
    granted = app.get("consumer", "worker")["status"]["permissions"]
    role = "lunaq:consume:queues:emails"
    assert granted == {
        "consume": f"{app.namespace}:emails",
        "publish": "none",
        "grants": [
            {
                "action": "queue.consume",
                "queues": f"{app.namespace}:emails",
                "grantedBy": [
                    {
                        "binding": f"RoleBinding {app.namespace}/{role}:{app.namespace}:worker",
                        "role": f"Role {app.namespace}/{role}",
                    }
                ],
            }
        ],
    }


@pytest.mark.parametrize("verb", ["consume", "publish"])
def test_kubectl_auth_can_i_answers_as_the_status_does(ready_queue, verb):
    app = ready_queue
    app.role("some", verbs=[verb], names=["emails"])
    app.bind("some")
    app.consumer()
    user = f"system:serviceaccount:{app.namespace}:worker"
    status = wait_for(lambda: app.get("consumer", "worker").get("status"), "a status")

    def can(action, what):
        command = ("auth", "can-i", action, what, f"--as={user}")
        return app.kubectl(*command, check=False).stdout.strip()

    assert can(verb, "queues.lunaq.dev/emails") == "yes"
    assert can(verb, "queues.lunaq.dev/other") == "no"
    assert can("consume" if verb == "publish" else "publish", "queues.lunaq.dev/emails") == "no"
    assert can("publish", "consumers.lunaq.dev/worker") == "no"
    action = {"consume": "queue.consume", "publish": "queue.publish.queue"}[verb]
    grants = status["permissions"]["grants"]
    assert [(one["action"], one["queues"]) for one in grants] == [(action, f"{app.namespace}:emails")]


def test_a_withdrawn_right_leaves_the_policy_at_once_and_the_pods_after_a_while(ready_queue):
    app = ready_queue
    app.allow_consuming()
    app.consumer()
    wait_replicas(app, 1)
    app.kubectl("delete", "rolebinding", "consume")
    wait_for(lambda: policy(app).get("consume") == [], "the policy to shrink")
    withdrawn = app.condition("consumer", "worker", "Authorized")
    wait_replicas(app, 0)
    wait_for(
        lambda: app.condition("consumer", "worker", "Authorized").get("reason") == "Withdrawn", "the reason"
    )
    assert withdrawn
    app.bind("consume")
    wait_replicas(app, 1)


def test_publishing_rights_reach_the_policy(ready_queue):
    app = ready_queue
    app.allow_consuming()
    app.role("publish", resources=["queues", "consumers"], verbs=["publish"], names=["emails", "worker"])
    app.bind("publish")
    app.consumer()
    wait_for(lambda: policy(app).get("publish") is True, "the right to publish")
    assert f"{app.namespace}:emails" in policy(app)["publishTo"]


def test_a_cluster_role_bound_in_the_namespace_grants(ready_queue):
    app = ready_queue
    name = f"lq-{secrets.token_hex(4)}"
    app.role(name, "ClusterRole")
    try:
        app.bind(name, "ClusterRole")
        app.consumer()
        wait_replicas(app, 1)
        app.cluster.kubectl("delete", "clusterrole", name)
        wait_for(lambda: policy(app).get("consume") == [], "the policy to shrink")
    finally:
        app.cluster.kubectl("delete", "clusterrole", name, "--ignore-not-found")


def test_running_pods_are_told_of_a_changed_policy(ready_queue):
    app = ready_queue
    app.allow_consuming()
    app.consumer()
    pods = wait_for(lambda: app.list("pods", "-l", "lunaq.dev/consumer=worker"), "a pod")
    app.kubectl("delete", "rolebinding", "consume")
    name = pods[0]["metadata"]["name"]
    wait_for(
        lambda: "lunaq.dev/policy-checksum" in (app.get("pod", name)["metadata"].get("annotations") or {}),
        "the pod's annotation",
    )


def test_a_handler_that_does_not_compile_never_replaces_one_that_runs(ready_queue):
    app = ready_queue
    app.allow_consuming()
    app.consumer(source="return function() return true end")
    wait_replicas(app, 1)
    before = app.get("deployment", "worker")["metadata"]["generation"]
    app.consumer(source="return function()\n  return ture ture\nend")
    told = app.wait_reason("consumer", "worker", "HandlerDoesNotCompile")
    assert ":2:" in told["message"]
    assert app.get("deployment", "worker")["metadata"]["generation"] == before
    assert "ture" not in app.get("configmap", "worker")["data"]["entries.yaml"]
    app.consumer(source="return function() return false end")
    wait_for(lambda: app.get("deployment", "worker")["metadata"]["generation"] > before, "a new rollout")


def test_a_handler_may_stand_in_a_configmap_and_its_change_is_noticed(ready_queue):
    app = ready_queue
    app.allow_consuming()
    app.consumer(handler={"sourceFrom": {"configMapKeyRef": {"name": "code", "key": "main.lua"}}})
    app.wait_reason("consumer", "worker", "HandlerMissing")

    def write(text):
        metadata = {"name": "code", "namespace": app.namespace}
        app.cluster.apply(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"main.lua": text}}
        )

    write("return function() return true end")
    wait_replicas(app, 1)
    write("return function() return false end")
    wait_for(
        lambda: "return false" in app.get("configmap", "worker")["data"]["entries.yaml"], "the new handler"
    )


def test_an_object_of_that_name_that_is_not_ours_is_never_adopted(ready_queue):
    app = ready_queue
    app.allow_consuming()
    metadata = {"name": "worker", "namespace": app.namespace}
    app.cluster.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"theirs": "kept"}}
    )
    app.consumer()
    assert "ConfigMap" in app.wait_reason("consumer", "worker", "NameConflict")["message"]
    theirs = app.get("configmap", "worker")
    assert theirs["data"] == {"theirs": "kept"}
    assert "ownerReferences" not in theirs["metadata"]
    app.kubectl("delete", "configmap", "worker")
    wait_replicas(app, 1)


def test_kubectl_scale_changes_the_deployment(ready_queue):
    app = ready_queue
    app.allow_consuming()
    app.consumer()
    wait_replicas(app, 1)
    app.kubectl("scale", "consumer", "worker", "--replicas=3")
    wait_replicas(app, 3)
    app.kubectl("scale", "consumer", "worker", "--replicas=0")
    app.wait_reason("consumer", "worker", "ScaledToZero")


def test_suspend_stops_the_pods_and_is_ready(ready_queue):
    app = ready_queue
    app.allow_consuming()
    app.consumer(suspend=True)
    assert app.wait_reason("consumer", "worker", "Suspended")["status"] == "True"
    assert replicas(app) == 0


def test_what_somebody_edited_or_deleted_is_put_back(ready_queue):
    app = ready_queue
    app.allow_consuming()
    app.consumer()
    wait_replicas(app, 1)
    app.kubectl("scale", "deployment", "worker", "--replicas=5")
    wait_replicas(app, 1)
    patch = json.dumps({"data": {"policy.yaml": "version: '1.0'"}})
    app.kubectl("patch", "configmap", "worker.policy", "--type=merge", "-p", patch)
    wait_for(lambda: app.get("configmap", "worker.policy")["data"]["policy.yaml"] != "version: '1.0'", "it")
    app.kubectl("delete", "deployment", "worker")
    wait_replicas(app, 1)


def test_an_account_that_is_no_longer_wanted_is_pruned(ready_queue):
    app = ready_queue
    app.allow_consuming("shared")
    app.consumer()
    wait_for(lambda: app.get("serviceaccount", "worker"), "the account")
    app.consumer(serviceAccountName="shared")
    wait_for(lambda: app.get("serviceaccount", "worker") is None, "the account to go")
    wait_replicas(app, 1)


def test_a_consumer_without_its_queue_waits_for_it(app):
    app.secret()
    app.broker()
    app.allow_consuming()
    app.consumer()
    app.wait_reason("consumer", "worker", "QueueMissing")
    app.queue("emails")
    wait_replicas(app, 1)


def test_deleting_a_consumer_takes_its_objects_along(ready_queue):
    app = ready_queue
    app.allow_consuming()
    app.consumer()
    wait_replicas(app, 1)
    app.kubectl("delete", "consumer", "worker")
    for kind, name in (
        ("deployment", "worker"),
        ("configmap", "worker.policy"),
        ("serviceaccount", "worker"),
    ):
        wait_for(lambda kind=kind, name=name: app.get(kind, name) is None, f"{kind} {name} to go")
