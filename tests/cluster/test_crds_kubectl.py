"""The kinds as kubectl shows them: explain, get with its columns, short names, scale, status."""

import json
import re
from pathlib import Path

import pytest
import yaml

from cluster.crd_cases import broker, consumer, queue
from harness.waiting import wait_for

ROOT = Path(__file__).parents[2]
CRDS = {
    crd["spec"]["names"]["singular"]: crd
    for crd in (yaml.safe_load(path.read_text()) for path in (ROOT / "crds").glob("*.yaml"))
}

pytestmark = pytest.mark.usefixtures("crds")


def schema_of(crd):
    return crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def levels(schema, path):
    """Give every level of a schema that kubectl explain can be asked for: path, description, its fields."""
    fields = schema.get("properties") or schema.get("items", {}).get("properties") or {}
    yield path, schema.get("description", ""), sorted(fields)
    for name, inner in fields.items():
        yield from levels(inner, f"{path}.{name}")


# The affinity of a Pod has 200 fields of Kubernetes' own; two of its levels stand for all.
LEVELS = [
    level
    for singular, crd in CRDS.items()
    for level in levels(schema_of(crd), singular)
    if level[2] and ("affinity." not in level[0] or level[0].endswith(("nodeAffinity", "podAntiAffinity")))
]


def words(text):
    return re.sub(r"\s+", " ", text)


@pytest.fixture(scope="module")
def published(apiserver, crds):  # noqa: ARG001 - a module's fixture cannot have a mark that uses another
    """Wait until the schemas are published, a moment after the CRDs are established."""
    wait_for(
        lambda: not any(apiserver.kubectl("explain", singular, check=False).returncode for singular in CRDS),
        "the schemas to be published",
        timeout=60,
    )


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(("path", "description", "fields"), LEVELS, ids=[level[0] for level in LEVELS])
def test_explain_tells_every_level_and_every_field_in_it(apiserver, path, description, fields):
    told = words(apiserver.kubectl("explain", path).stdout)
    assert words(description) in told
    for field in fields:
        assert f" {field} <" in told
    assert "<no description>" not in told


def test_short_names_and_the_category_work(apiserver, namespace):
    for obj in (broker(), queue(), consumer()):
        apiserver.kubectl("create", "-n", namespace, "-f", "-", input=json.dumps(obj))
    for short in ("lqb", "lqq", "lqc"):
        assert len(apiserver.kubectl("get", short, "-n", namespace, "-o", "name").stdout.split()) == 1
    assert len(apiserver.kubectl("get", "lunaq", "-n", namespace, "-o", "name").stdout.split()) == 3


CONDITIONS = [
    {
        "type": kind,
        "status": status,
        "observedGeneration": 1,
        "lastTransitionTime": "2026-01-02T03:04:05Z",
        "reason": reason,
        "message": "For people.",
    }
    for kind, status, reason in (("Ready", "True", "Available"), ("Stalled", "False", "NotStalled"))
]
STATUSES = [
    (
        broker(),
        {"serverProduct": "RabbitMQ", "serverVersion": "4.0.5", "access": "Shared"},
        ["True", "Available", "RabbitMQ", "4.0.5", "Shared"],
    ),
    (
        queue(),
        {
            "queueID": "app:emails",
            "brokerQueueName": "app:emails",
            "exchange": "app:emails.x",
            "ready": 7,
            "messages": 9,
            "deadLettered": 2,
        },
        ["True", "Available", "Quorum", "9", "2"],
    ),
    (
        consumer(),
        {
            "queue": "app/emails",
            "queueID": "app:emails",
            "replicas": 2,
            "readyReplicas": 1,
            "selector": "lunaq.dev/consumer=email-worker",
            "handlerDigest": "sha256:0123",
            "serviceAccountName": "email-worker",
        },
        ["True", "Available", "app:emails", "1", "1"],
    ),
]


@pytest.mark.parametrize(("obj", "status", "columns"), STATUSES, ids=[row[0]["kind"] for row in STATUSES])
def test_status_is_kept_whole_and_shown_in_columns(apiserver, namespace, obj, status, columns):
    """A field of the status that the schema lacks would be dropped without a word."""
    created = apiserver.kubectl(
        "create", "-n", namespace, "-f", "-", "-o", "json", input=json.dumps(obj | {"status": status})
    )
    assert "status" not in json.loads(created.stdout)  # only the subresource writes it
    status = status | {"observedGeneration": 1, "conditions": CONDITIONS}
    where = (obj["kind"].lower(), obj["metadata"]["name"], "-n", namespace)
    patched = apiserver.kubectl(
        "patch",
        *where,
        "--subresource=status",
        "--type=merge",
        "-o",
        "json",
        "-p",
        json.dumps({"status": status}),
    )
    assert json.loads(patched.stdout)["status"] == status
    heading, row = apiserver.kubectl("get", *where).stdout.splitlines()
    assert heading.split()[:3] == ["NAME", "READY", "REASON"]
    assert heading.split()[-1] == "AGE"
    assert row.split()[1 : 1 + len(columns)] == columns


def test_conditions_are_merged_by_type(apiserver, namespace):
    """Two field managers may each apply a condition of their own."""
    apiserver.kubectl("create", "-n", namespace, "-f", "-", input=json.dumps(queue()))
    for condition in CONDITIONS:
        obj = queue() | {"status": {"conditions": [condition]}}
        obj.pop("spec")
        apiserver.kubectl(
            *("apply", "-n", namespace, "-f", "-", "--server-side", "--subresource=status"),
            f"--field-manager={condition['type']}",
            input=json.dumps(obj),
        )
    status = json.loads(apiserver.kubectl("get", "queue/emails", "-n", namespace, "-o", "json").stdout)[
        "status"
    ]
    assert [condition["type"] for condition in status["conditions"]] == ["Ready", "Stalled"]


def test_scale_works_on_a_consumer_that_never_said_replicas(apiserver, namespace):
    apiserver.kubectl("create", "-n", namespace, "-f", "-", input=json.dumps(consumer()))
    where = ("consumer/email-worker", "-n", namespace)
    status = {"status": {"replicas": 1, "selector": "lunaq.dev/consumer=email-worker"}}
    apiserver.kubectl("patch", *where, "--subresource=status", "--type=merge", "-p", json.dumps(status))
    url = f"/apis/lunaq.dev/v1alpha1/namespaces/{namespace}/consumers/email-worker/scale"
    scale = json.loads(apiserver.kubectl("get", "--raw", url).stdout)
    assert scale["spec"] == {"replicas": 1}
    assert scale["status"] == {"replicas": 1, "selector": "lunaq.dev/consumer=email-worker"}

    apiserver.kubectl("scale", *where, "--replicas=3")
    assert apiserver.kubectl("get", *where, "-o", "jsonpath={.spec.replicas}").stdout == "3"
    refused = apiserver.kubectl("scale", *where, "--replicas=-1", check=False)
    assert refused.returncode != 0


@pytest.mark.parametrize(
    ("verb", "resource", "answer"),
    [
        ("consume", "queues.lunaq.dev/emails", "yes"),
        ("consume", "queues.lunaq.dev/sent", "no"),
        ("publish", "consumers.lunaq.dev/email-worker", "yes"),
        ("publish", "queues.lunaq.dev/sent", "yes"),
        ("publish", "queues.lunaq.dev/emails", "no"),
        ("publish", "queues.lunaq.dev/audit", "no"),
    ],
)
def test_the_example_grants_its_worker_what_its_readme_says(apiserver, namespace, verb, resource, answer):
    apiserver.kubectl("apply", "-n", namespace, "-f", str(ROOT / "examples" / "emails" / "rbac.yaml"))
    account = "system:serviceaccount:app:email-worker"  # as the binding's subject has it
    done = apiserver.kubectl(
        *("auth", "can-i", verb, resource, "-n", namespace, f"--as={account}"), check=False
    )
    assert done.stdout.strip() == answer
