"""The objects of a Consumer: complete, deterministic, and restarted only for what needs a restart."""

from typing import Any

import pytest

from lunaq_operator import render
from lunaq_operator.resources import parse_consumer

RUNTIME = render.Runtime(image="lunaq/runtime:1", image_pull_secrets=("registry",))


def consumer(**spec: Any):
    return parse_consumer(
        {
            "apiVersion": "lunaq.dev/v1alpha1",
            "kind": "Consumer",
            "metadata": {"name": "worker", "namespace": "app", "uid": "u-1"},
            "spec": {"queueRef": {"name": "emails"}, "handler": {"source": "return 1"}} | spec,
        }
    )


def deployment(entries="entries: []\n", replicas=1, **spec: Any) -> dict[str, Any]:
    return render.deployment(
        consumer(**spec),
        entries=entries,
        credentials_secret="rabbitmq",
        runtime=RUNTIME,
        replicas=replicas,
    )


def pod(**spec: Any) -> dict[str, Any]:
    return deployment(**spec)["spec"]["template"]["spec"]


def everything(**spec: Any) -> list[dict[str, Any]]:
    one = consumer(**spec)
    objects = [
        render.service_account(one),
        render.entries_config_map(one, "a"),
        render.policy_config_map(one, "b"),
        deployment(**spec),
    ]
    return [obj for obj in objects if obj]


def test_every_object_is_owned_labelled_and_in_the_consumers_namespace():
    assert [obj["kind"] for obj in everything()] == [
        "ServiceAccount",
        "ConfigMap",
        "ConfigMap",
        "Deployment",
    ]
    for obj in everything():
        metadata = obj["metadata"]
        assert metadata["namespace"] == "app"
        assert metadata["labels"]["lunaq.dev/consumer"] == "worker"
        assert metadata["ownerReferences"] == [
            {
                "apiVersion": "lunaq.dev/v1alpha1",
                "kind": "Consumer",
                "name": "worker",
                "uid": "u-1",
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]
        assert render.owned_by(obj, consumer())


def test_names_cannot_be_those_of_another_consumers_objects():
    names = [(obj["kind"], obj["metadata"]["name"]) for obj in everything()]
    assert names == [
        ("ServiceAccount", "worker"),
        ("ConfigMap", "worker"),
        ("ConfigMap", "worker.policy"),
        ("Deployment", "worker"),
    ]


def test_an_object_of_another_owner_is_not_ours():
    theirs = {"metadata": {"ownerReferences": [{"uid": "u-2", "controller": True}]}}
    assert not render.owned_by(theirs, consumer())
    assert not render.owned_by({"metadata": {}}, consumer())


def test_no_service_account_is_made_where_one_is_named():
    assert render.service_account(consumer(serviceAccountName="mailer")) is None
    assert pod(serviceAccountName="mailer")["serviceAccountName"] == "mailer"
    assert pod()["serviceAccountName"] == "worker"


def test_the_runtime_is_told_its_files_and_they_are_mounted_there():
    container = pod()["containers"][0]
    assert container["args"] == [
        "run",
        "/etc/lunaq/entries/entries.yaml",
        "--policy",
        "/etc/lunaq/policy/policy.yaml",
        "--credentials-dir",
        "/etc/lunaq/credentials",
        "--health-port",
        "8080",
    ]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {
        "entries": "/etc/lunaq/entries",
        "policy": "/etc/lunaq/policy",
        "credentials": "/etc/lunaq/credentials",
    }
    assert not any("subPath" in mount for mount in container["volumeMounts"])
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    assert volumes["entries"]["configMap"]["name"] == "worker"
    assert volumes["policy"]["configMap"]["name"] == "worker.policy"
    assert volumes["credentials"]["secret"]["secretName"] == "rabbitmq"
    assert list(render.entries_config_map(consumer(), "a")["data"]) == ["entries.yaml"]
    assert list(render.policy_config_map(consumer(), "a")["data"]) == ["policy.yaml"]


def test_a_changed_entries_document_replaces_pods():
    def annotations(entries: str) -> dict[str, str]:
        return deployment(entries=entries)["spec"]["template"]["metadata"]["annotations"]

    assert annotations("a") != annotations("b")
    assert annotations("a") == annotations("a")
    assert list(annotations("a")) == ["lunaq.dev/entries-checksum"]


def test_pods_meet_the_restricted_pod_security_standard():
    spec = pod()
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    security = spec["containers"][0]["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["readOnlyRootFilesystem"] is True
    allowed = {"configMap", "secret", "name"}
    assert all(set(volume) <= allowed for volume in spec["volumes"])
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)


def test_pods_get_no_token_of_the_api_server():
    assert pod()["automountServiceAccountToken"] is False
    assert render.service_account(consumer())["automountServiceAccountToken"] is False


@pytest.mark.parametrize(("drain", "seconds"), [("40s", 55), ("1500ms", 17), ("2m", 135)])
def test_a_pod_gets_time_to_drain_and_some_more(drain, seconds):
    assert pod(drainTimeout=drain)["terminationGracePeriodSeconds"] == seconds


def test_a_new_pod_is_there_before_an_old_one_goes():
    strategy = deployment()["spec"]["strategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}


def test_probes_ask_what_they_are_meant_to_ask():
    container = pod()["containers"][0]
    paths = {name: container[name]["httpGet"]["path"] for name in container if name.endswith("Probe")}
    assert paths == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}


def test_only_values_the_kubelet_reads_stand_in_the_pod():
    env = [
        {"name": "REGION", "value": "eu"},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        {"name": "LEVEL", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "l"}}},
    ]
    container = pod(handler={"source": "x", "env": env})["containers"][0]
    assert container["env"] == env[1:]
    assert "env" not in pod()["containers"][0]


def test_the_template_goes_into_the_pods_and_cannot_take_our_labels():
    template = {
        "labels": {"team": "mail", "app.kubernetes.io/managed-by": "me"},
        "annotations": {"a": "b"},
        "resources": {"limits": {"memory": "1Gi"}},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "k", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "priorityClassName": "high",
        "topologySpreadConstraints": [{"maxSkew": 1}],
    }
    metadata = deployment(template=template)["spec"]["template"]["metadata"]
    assert metadata["labels"]["team"] == "mail"
    assert metadata["labels"]["app.kubernetes.io/managed-by"] == "lunaq-operator"
    assert metadata["annotations"]["a"] == "b"
    spec = pod(template=template)
    assert spec["containers"][0]["resources"] == {"limits": {"memory": "1Gi"}}
    for name in ("nodeSelector", "tolerations", "affinity", "priorityClassName", "topologySpreadConstraints"):
        assert spec[name] == template[name]
    assert not set(template) & set(pod())


def test_the_selector_is_in_the_pods_labels():
    spec = deployment()["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()


def test_equal_consumers_give_equal_objects():
    assert everything() == everything()


SCALING = {"minReplicas": 1, "maxReplicas": 5, "messagesPerReplica": 10}


@pytest.mark.parametrize(
    ("spec", "runnable", "scaled", "replicas"),
    [
        ({}, True, None, 1),
        ({"replicas": 3}, True, None, 3),
        ({"replicas": 0}, True, None, 0),
        ({"replicas": 3, "suspend": True}, True, None, 0),
        ({"replicas": 3}, False, None, 0),
        ({"replicas": 3, "scaling": SCALING}, True, None, 3),
        ({"replicas": 3, "scaling": SCALING}, True, 4, 4),
        ({"replicas": 3, "scaling": SCALING}, True, 9, 5),
        ({"replicas": 3, "scaling": SCALING}, True, 0, 1),
        ({"replicas": 3, "scaling": SCALING}, False, 4, 0),
    ],
)
def test_how_many_pods_are_wanted(spec, runnable, scaled, replicas):
    assert render.wanted_replicas(consumer(**spec), runnable=runnable, scaled=scaled) == replicas
    assert deployment(replicas=replicas)["spec"]["replicas"] == replicas
