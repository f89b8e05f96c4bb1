"""What the API server refuses and accepts by the CRDs, told by a real one.

The rows are in crd_cases; that every CEL rule has one is checked by tests/unit/test_crds.py.
"""

import json
from pathlib import Path

import pytest
import yaml

from cluster.crd_cases import (
    ACCEPTED,
    ALLOWED_CHANGES,
    REFUSALS,
    REFUSED_CHANGES,
    SPECS_WITH_DEFAULTS,
    consumer,
    queue,
)

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("crds")


def rule_messages():
    """Give the messages of all CEL rules, by kind."""

    def walk(schema):
        yield from (rule["message"] for rule in schema.get("x-kubernetes-validations", ()))
        for inner in schema.get("properties", {}).values():
            yield from walk(inner)
        if "items" in schema:
            yield from walk(schema["items"])

    found = {}
    for path in (ROOT / "crds").glob("*.yaml"):
        crd = yaml.safe_load(path.read_text())
        schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        found[crd["spec"]["names"]["kind"]] = list(walk(schema))
    return found


MESSAGES = rule_messages()


def check_refused_by_one_rule(answer, kind, says):
    assert answer.refusal, f"accepted: {answer.obj}"
    spoken = [message for message in MESSAGES[kind] if message in answer.refusal]
    assert [message for message in spoken if message.startswith(says)] == spoken != [], answer.refusal
    assert len(spoken) == 1, answer.refusal


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.title)
def test_refuses_with_the_message_of_the_rule_and_no_other(apiserver, refusal):
    answer = apiserver.create(refusal.obj, "default", dry_run=True)
    check_refused_by_one_rule(answer, refusal.obj["kind"], refusal.says)


@pytest.mark.parametrize("obj", ACCEPTED, ids=lambda obj: f"{obj['kind']} {json.dumps(obj['spec'])[:60]}")
def test_accepts_and_keeps_every_field(apiserver, obj):
    answer = apiserver.create(obj, "default", dry_run=True)
    assert not answer.refusal

    def check_kept(wanted, got, path):
        if isinstance(wanted, dict):
            for key, value in wanted.items():
                assert key in got, f"{path}.{key} is gone"
                check_kept(value, got[key], f"{path}.{key}")
        elif isinstance(wanted, list):
            assert len(wanted) == len(got), path
            for index, value in enumerate(wanted):
                check_kept(value, got[index], f"{path}[{index}]")
        else:
            assert wanted == got, path

    check_kept(obj["spec"], answer.obj["spec"], "spec")


@pytest.mark.parametrize(
    ("obj", "fields"), SPECS_WITH_DEFAULTS, ids=lambda value: json.dumps(value.get("spec", value))[:60]
)
def test_fills_in_the_defaults(apiserver, obj, fields):
    answer = apiserver.create(obj, "default", dry_run=True)
    assert not answer.refusal
    assert answer.obj["spec"] == obj["spec"] | fields


@pytest.mark.parametrize("change", REFUSED_CHANGES, ids=lambda change: change.title)
def test_refuses_a_change_of_what_the_broker_cannot_change(apiserver, namespace, change):
    assert not apiserver.create(change.before, namespace).refusal
    answer = apiserver.replace(change.after, namespace)
    check_refused_by_one_rule(answer, change.before["kind"], change.says)


@pytest.mark.parametrize("change", ALLOWED_CHANGES, ids=lambda change: change.title)
def test_allows_any_other_change(apiserver, namespace, change):
    assert not apiserver.create(change.before, namespace).refusal
    answer = apiserver.replace(change.after, namespace)
    assert not answer.refusal


@pytest.mark.parametrize(
    ("obj", "says"),
    [
        (queue(type="Stream"), 'supported values: "Quorum", "Classic"'),
        (queue(retry={"maxAttempts": 0}), "spec.retry.maxAttempts"),
        (queue(retry={"delays": []}), "spec.retry.delays"),
        (queue(retry={"delays": ["1s"] * 6}), "spec.retry.delays: Too many"),
        (queue(maxLength=0), "spec.maxLength"),
        (queue(type="Classic", maxPriority=256), "spec.maxPriority"),
        (consumer(concurrency=0), "spec.concurrency"),
        (consumer(concurrency=1001), "spec.concurrency"),
        (consumer(prefetch=10001), "spec.prefetch"),
        (consumer(replicas=-1), "spec.replicas"),
        (consumer(handler={"source": ""}), "spec.handler.source"),
        (consumer(handler={"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}), "Duplicate"),
        (consumer(handler={"modules": ["json", "json"]}), "Duplicate"),
        (consumer(replica=2), 'unknown field "spec.replica"'),
        (consumer(template={"image": "x"}), 'unknown field "spec.template.image"'),
        (
            consumer(template={"affinity": {"podAffinty": {}}}),
            'unknown field "spec.template.affinity.podAffinty"',
        ),
        (
            consumer(template={"resources": {"limits": {"memory": "lots"}}}),
            "spec.template.resources.limits.memory",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value["spec"])[:50],
)
def test_refuses_what_is_out_of_range_or_unknown(apiserver, obj, says):
    assert says in apiserver.create(obj, "default", dry_run=True).refusal


def test_the_examples_apply_as_they_are(apiserver, namespace):
    done = apiserver.kubectl("apply", "-n", namespace, "-f", str(ROOT / "examples" / "emails"), check=False)
    assert done.returncode == 0, done.stderr
    listed = apiserver.kubectl("get", "lunaq", "-n", namespace, "-o", "name").stdout.split()
    assert sorted(listed) == [
        "broker.lunaq.dev/rabbitmq",
        "consumer.lunaq.dev/email-worker",
        "queue.lunaq.dev/audit",
        "queue.lunaq.dev/emails",
        "queue.lunaq.dev/sent",
    ]
