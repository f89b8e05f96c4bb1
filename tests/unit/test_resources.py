"""The resource models: defaults as the schema's, errors by field, and no field that only one side has."""

import copy
import dataclasses
import re
import types
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

from lunaq_operator import resources
from lunaq_operator.resources import SpecError, effective_access, parse_broker, parse_consumer, parse_queue
from lunaq_operator.resources.meta import Meta

CRDS = Path(__file__).parents[2] / "crds"


def schema_of(plural: str) -> dict[str, Any]:
    crd = yaml.safe_load((CRDS / f"{plural}.lunaq.dev.yaml").read_text())
    return crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]


def obj(kind: str, spec: dict[str, Any], name: str = "emails", **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "lunaq.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "app", **metadata},
        "spec": spec,
    }


BROKER = {"uri": "amqp://rabbitmq.app.svc", "credentialsSecretRef": {"name": "rabbitmq"}}
QUEUE = {"brokerRef": {"name": "rabbitmq"}}
CONSUMER = {"queueRef": {"name": "emails"}, "handler": {"source": "return print"}}
PARSERS = {
    "Broker": (parse_broker, BROKER),
    "Queue": (parse_queue, QUEUE),
    "Consumer": (parse_consumer, CONSUMER),
}


def broker(**spec: Any) -> resources.Broker:
    return parse_broker(obj("Broker", BROKER | spec))


def queue(**spec: Any) -> resources.Queue:
    return parse_queue(obj("Queue", QUEUE | spec))


def consumer(**spec: Any) -> resources.Consumer:
    return parse_consumer(obj("Consumer", CONSUMER | spec))


def handler(**spec: Any) -> resources.Consumer:
    return consumer(handler={"source": "return print"} | spec)


def refused(call: Any, field: str, reason: str = "") -> None:
    with pytest.raises(SpecError) as caught:
        call()
    assert caught.value.field == field
    assert reason in caught.value.reason


# --- the schema and the model


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])|(?<=[A-Z])([A-Z])(?=[a-z])", r"_\1\2", name).lower()


def model_class(annotation: Any) -> Any:
    """Return the dataclass inside `X | None` or `tuple[X, ...]`, if there is one."""
    if dataclasses.is_dataclass(annotation):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is tuple:
        found = [cls for cls in map(model_class, typing.get_args(annotation)) if cls]
        return found[0] if found else None
    return None


def differences(schema: dict[str, Any], model: Any, path: str) -> list[str]:
    hints = typing.get_type_hints(
        model, vars(resources.meta) | vars(typing) | {"Mapping": dict} | vars(resources)
    )
    fields = {name.rstrip("_"): hint for name, hint in hints.items() if hint is not Meta}
    properties = {snake(name): (name, value) for name, value in schema["properties"].items()}
    found = [f"{path}.{properties[name][0]}: not in {model.__name__}" for name in properties.keys() - fields]
    found += [f"{model.__name__}.{name}: not in the schema at {path}" for name in fields.keys() - properties]
    for name in properties.keys() & fields.keys():
        spelled, inner = properties[name]
        inner = inner.get("items", inner)
        if cls := model_class(fields[name]):
            found += differences(inner, cls, f"{path}.{spelled}")
    return found


@pytest.mark.parametrize(
    ("plural", "model"),
    [("brokers", resources.Broker), ("queues", resources.Queue), ("consumers", resources.Consumer)],
)
def test_every_property_of_the_schema_has_a_field_and_the_reverse(plural, model):
    assert differences(schema_of(plural), model, "spec") == []


def fill_in(schema: dict[str, Any], value: Any) -> Any:
    """Fill in a schema's defaults as the API server does."""
    if isinstance(value, dict):
        for name, inner in schema.get("properties", {}).items():
            if name not in value and "default" in inner:
                value[name] = copy.deepcopy(inner["default"])
            if name in value:
                value[name] = fill_in(inner, value[name])
    if isinstance(value, list):
        return [fill_in(schema.get("items", {}), item) for item in value]
    return value


@pytest.mark.parametrize("kind", PARSERS)
def test_the_models_defaults_are_the_schemas(kind):
    parse, spec = PARSERS[kind]
    if kind == "Consumer":
        spec = spec | {"scaling": {"maxReplicas": 3, "messagesPerReplica": 10}}
    defaulted = fill_in(schema_of(f"{kind.lower()}s"), copy.deepcopy(spec))
    assert defaulted != spec
    assert parse(obj(kind, defaulted)) == parse(obj(kind, spec))


def test_every_object_in_the_examples_parses():
    found = 0
    for path in (CRDS.parent / "examples").rglob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            if document and document.get("kind") in PARSERS:
                document["metadata"].setdefault("namespace", "app")
                PARSERS[document["kind"]][0](document, strict=True)
                found += 1
    assert found >= 5


# --- metadata


def test_metadata_is_read():
    parsed = parse_queue(
        obj(
            "Queue",
            QUEUE,
            uid="u-1",
            generation=7,
            deletionTimestamp="2026-01-01T00:00:00Z",
            finalizers=["lunaq.dev/cleanup"],
        )
    )
    assert (parsed.name, parsed.namespace, parsed.uid, parsed.generation) == ("emails", "app", "u-1", 7)
    assert parsed.key == ("app", "emails")
    assert parsed.deletion_timestamp == "2026-01-01T00:00:00Z"
    assert parsed.finalizers == ("lunaq.dev/cleanup",)
    assert str(parsed.id) == "app:emails"


@pytest.mark.parametrize("kind", ["Queue", "Consumer"])
@pytest.mark.parametrize("name", ["a.b", "A", "-a", "a_b", "a\n", "x" * 64])
def test_a_name_that_is_no_dns_label_is_refused(kind, name):
    parse, spec = PARSERS[kind]
    refused(lambda: parse(obj(kind, spec, name=name)), "metadata.name")


def test_an_object_of_another_kind_is_refused():
    refused(lambda: parse_queue(obj("Broker", QUEUE)), "kind")


@pytest.mark.parametrize("kind", PARSERS)
def test_an_unknown_field_is_refused_only_where_asked(kind):
    parse, spec = PARSERS[kind]
    document = obj(kind, spec | {"colour": 1})
    parse(document)
    refused(lambda: parse(document, strict=True), "spec.colour", f"not a field of {kind}")


def test_an_unknown_field_deep_inside_is_named_by_its_path():
    document = obj(
        "Consumer",
        CONSUMER | {"handler": {"source": "x", "libraries": [{"name": "l", "source": "x", "a": 1}]}},
    )
    refused(lambda: parse_consumer(document, strict=True), "spec.handler.libraries[0].a")


def test_null_means_absent():
    assert queue(queueName=None, retry=None, type=None) == queue()


# --- Broker


def test_access_follows_from_the_management_api():
    management = {"uri": "http://rabbitmq:15672"}
    assert effective_access(broker()) == "Shared"
    assert effective_access(broker(management=management)) == "PerConsumer"
    assert effective_access(broker(management=management, access="Shared")) == "Shared"


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"uri": "http://host"}, "spec.uri"),
        ({"uri": "amqp://"}, "spec.uri"),
        ({"uri": "amqp://host:99999"}, "spec.uri"),
        ({"uri": "amqp://host/a/b"}, "spec.uri"),
        ({"uri": "amqp://host?verify=none"}, "spec.uri"),
        ({"uri": "amqp://host#x"}, "spec.uri"),
        ({"uri": 5}, "spec.uri"),
        ({"credentialsSecretRef": None}, "spec.credentialsSecretRef"),
        ({"credentialsSecretRef": {"name": "A"}}, "spec.credentialsSecretRef.name"),
        ({"tls": {"serverName": "x"}}, "spec.tls"),
        ({"access": "PerConsumer"}, "spec.access"),
        ({"access": "Nobody"}, "spec.access"),
        ({"management": {"uri": "amqp://host"}}, "spec.management.uri"),
        (
            {"management": {"uri": "http://h"}, "runtimeCredentialsSecretRef": {"name": "r"}},
            "spec.runtimeCredentialsSecretRef",
        ),
        ({"allowedNamespaces": {"from": "All"}}, "spec.allowedNamespaces.from"),
        ({"allowedNamespaces": {"from": "Selector"}}, "spec.allowedNamespaces.selector"),
        ({"allowedNamespaces": {"selector": {"matchLabels": {"a": "b"}}}}, "spec.allowedNamespaces.selector"),
    ],
)
def test_a_broker_that_cannot_be_is_refused_by_field(spec, field):
    refused(lambda: broker(**spec), field)


def test_credentials_in_a_uri_are_refused_and_not_repeated():
    with pytest.raises(SpecError) as caught:
        broker(uri="amqp://user:hunter2@host")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("uri", ["amqp://h:5673/%2Fv?heartbeat=10&connection_timeout=500", "amqps://[::1]/"])
def test_a_uri_with_virtual_host_and_parameters_is_accepted(uri):
    assert broker(uri=uri).uri == uri


# --- Queue


def test_a_queues_broker_side_name_is_its_id_unless_named():
    assert queue().broker_side_name == "app:emails"
    assert queue(queueName="legacy").broker_side_name == "legacy"


def test_a_brokers_namespace_is_the_queues_unless_named():
    assert queue().broker_ref == resources.Ref("rabbitmq", "app")
    other = queue(brokerRef={"name": "rabbitmq", "namespace": "platform"})
    assert other.broker_ref == resources.Ref("rabbitmq", "platform")


def test_durations_are_read_into_milliseconds():
    parsed = queue(messageTTL="1h30m", retry={"delays": ["500ms", "1.5s"]})
    assert parsed.message_ttl == 5_400_000
    assert parsed.retry == resources.Retry(5, (500, 1500))


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"brokerRef": None}, "spec.brokerRef"),
        ({"brokerRef": {"name": "r", "namespace": "a.b"}}, "spec.brokerRef.namespace"),
        ({"queueName": "app:emails"}, "spec.queueName"),
        ({"queueName": "amq.gen"}, "spec.queueName"),
        ({"queueName": "é" * 101}, "spec.queueName"),
        ({"type": "Stream"}, "spec.type"),
        ({"codec": "xml"}, "spec.codec"),
        ({"messageTTL": "1d"}, "spec.messageTTL"),
        ({"messageTTL": "-5s"}, "spec.messageTTL"),
        ({"messageTTL": "0s"}, "spec.messageTTL"),
        ({"messageTTL": "1177h"}, "spec.messageTTL"),
        ({"messageTTL": 5}, "spec.messageTTL"),
        ({"maxLength": 0}, "spec.maxLength"),
        ({"maxLength": True}, "spec.maxLength"),
        ({"maxPriority": 5}, "spec.maxPriority"),
        ({"type": "Classic", "messageTTL": "5s"}, "spec.messageTTL"),
        ({"type": "Classic", "maxLength": 5}, "spec.maxLength"),
        ({"type": "Classic", "maxLengthBytes": 5}, "spec.maxLengthBytes"),
        ({"retry": {"maxAttempts": 0}}, "spec.retry.maxAttempts"),
        ({"retry": {"delays": []}}, "spec.retry.delays"),
        ({"retry": {"delays": ["1s"] * 6}}, "spec.retry.delays"),
        ({"retry": {"delays": ["1s", "x"]}}, "spec.retry.delays[1]"),
        ({"retry": {"delays": ["1s", 2]}}, "spec.retry.delays[1]"),
        ({"deadLetter": {}}, "spec.deadLetter.queueRef"),
        ({"deadLetter": {"queueRef": {"name": "emails"}}}, "spec.deadLetter.queueRef.name"),
        ({"managementPolicy": "Observe", "deletionPolicy": "Delete"}, "spec.deletionPolicy"),
        ({"managementPolicy": "Observe", "retry": {"maxAttempts": 2}}, "spec.retry"),
        ({"managementPolicy": "Observe", "maxLength": 2}, "spec.maxLength"),
    ],
)
def test_a_queue_that_cannot_be_is_refused_by_field(spec, field):
    refused(lambda: queue(**spec), field)


# --- Consumer


def test_a_consumers_service_account_is_of_its_own_name_unless_named():
    assert consumer().service_account == "emails"
    assert consumer(serviceAccountName="worker").service_account == "worker"


@pytest.mark.parametrize(
    ("text", "amount"), [("64Mi", 67_108_864), ("1.5Gi", 1_610_612_736), ("100M", 100_000_000)]
)
def test_a_memory_limit_is_read_into_bytes(text, amount):
    assert handler(memoryLimit=text).handler.memory_limit == amount


def _http(ranges, module="http_client"):
    return {"modules": [module], "httpClient": {"privateRanges": ranges}}


def test_the_private_ranges_of_http_client_are_none_unless_listed():
    assert handler().handler.http_client.private_ranges == ()
    ranges = ["10.96.0.0/12", "fd00::/8"]
    assert handler(**_http(ranges)).handler.http_client.private_ranges == tuple(ranges)


def test_no_list_of_modules_differs_from_an_empty_one():
    assert handler().handler.modules is None
    assert handler(modules=[]).handler.modules == ()


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"queueRef": {}}, "spec.queueRef.name"),
        ({"handler": None}, "spec.handler"),
        ({"handler": []}, "spec.handler"),
        ({"concurrency": 0}, "spec.concurrency"),
        ({"concurrency": 1001}, "spec.concurrency"),
        ({"prefetch": 10_001}, "spec.prefetch"),
        ({"prefetch": "10"}, "spec.prefetch"),
        ({"replicas": -1}, "spec.replicas"),
        ({"suspend": "yes"}, "spec.suspend"),
        ({"drainTimeout": "25h"}, "spec.drainTimeout"),
        ({"serviceAccountName": "Worker"}, "spec.serviceAccountName"),
        ({"scaling": {"messagesPerReplica": 1}}, "spec.scaling.maxReplicas"),
        (
            {"scaling": {"minReplicas": 3, "maxReplicas": 2, "messagesPerReplica": 1}},
            "spec.scaling.minReplicas",
        ),
        ({"template": {"labels": {"a": 1}}}, "spec.template.labels.a"),
        ({"template": {"labels": {"lunaq.dev/consumer": "x"}}}, "spec.template.labels.lunaq.dev/consumer"),
        ({"template": {"tolerations": {}}}, "spec.template.tolerations"),
    ],
)
def test_a_consumer_that_cannot_be_is_refused_by_field(spec, field):
    refused(lambda: consumer(**spec), field)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"sourceFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}, "spec.handler"),
        ({"source": None}, "spec.handler"),
        ({"source": None, "sourceFrom": {}}, "spec.handler.sourceFrom.configMapKeyRef"),
        ({"method": "a.b"}, "spec.handler.method"),
        ({"timeout": "30m"}, "spec.handler.timeout"),
        ({"memoryLimit": "64m"}, "spec.handler.memoryLimit"),
        ({"memoryLimit": "lots"}, "spec.handler.memoryLimit"),
        ({"modules": ["json", "json"]}, "spec.handler.modules[1]"),
        ({"modules": ["a b"]}, "spec.handler.modules[0]"),
        (_http(["10.0.0.0/8", "10.0.0.1/8"]), "spec.handler.httpClient.privateRanges[1]"),
        (_http(["10.0.0.0/8", "10.0.0.0/8"]), "spec.handler.httpClient.privateRanges[1]"),
        (_http(["all"]), "spec.handler.httpClient.privateRanges[0]"),
        (_http(["169.254.169.254/32"]), "spec.handler.httpClient.privateRanges[0]"),
        (_http(["10.0.0.0/8"], "json"), "spec.handler.httpClient"),
        ({"libraries": [{"name": "email"}]}, "spec.handler.libraries[0]"),
        ({"libraries": [{"name": "queue", "source": "x"}]}, "spec.handler.libraries[0].name"),
        ({"libraries": [{"name": "end", "source": "x"}]}, "spec.handler.libraries[0].name"),
        ({"libraries": [{"name": "a", "source": "x"}] * 2}, "spec.handler.libraries[1]"),
        ({"env": [{"name": "A"}]}, "spec.handler.env[0]"),
        ({"env": [{"name": "LUNAQ_X", "value": ""}]}, "spec.handler.env[0].name"),
        ({"env": [{"name": "A", "value": "x"}] * 2}, "spec.handler.env[1]"),
        ({"env": [{"name": "A", "valueFrom": {}}]}, "spec.handler.env[0].valueFrom"),
        (
            {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s"}}}]},
            "spec.handler.env[0].valueFrom.secretKeyRef.key",
        ),
    ],
)
def test_a_handler_that_cannot_be_is_refused_by_field(spec, field):
    refused(lambda: handler(**spec), field)


@pytest.mark.parametrize(
    ("uri", "reached"),
    [
        ("amqp://rabbitmq", "amqp://rabbitmq.app.svc"),
        ("amqp://rabbitmq:5672/rabbitmq", "amqp://rabbitmq.app.svc:5672/rabbitmq"),
        ("amqps://rabbitmq?heartbeat=5", "amqps://rabbitmq.app.svc?heartbeat=5"),
        ("amqp://rabbitmq.other:5672", "amqp://rabbitmq.other:5672"),
        ("amqp://localhost:5672/%2F", "amqp://localhost:5672/%2F"),
        ("amqp://10.0.0.1", "amqp://10.0.0.1"),
        ("amqp://[::1]:5672", "amqp://[::1]:5672"),
    ],
)
def test_a_host_without_a_dot_is_a_service_beside_the_broker(uri, reached) -> None:
    broker = parse_broker(obj("Broker", BROKER | {"uri": uri}))
    assert broker.cluster_uri == reached
