"""What is compiled reads back as what the resources mean."""

from typing import Any

import pytest
import yaml

from lunaq_operator import render
from lunaq_operator.compile import Code, entries_document, policy_document, queue_settings
from lunaq_operator.resources import SpecError, parse_broker, parse_consumer, parse_queue
from lunaq_runtime.entries import model, parse
from lunaq_runtime.ids import Id
from lunaq_runtime.policy import Policy
from lunaq_runtime.topology import topology_of

CLUSTER = "c1"


def obj(kind: str, name: str, spec: dict[str, Any], namespace: str = "app") -> dict[str, Any]:
    return {
        "apiVersion": "lunaq.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}"},
        "spec": spec,
    }


BROKER = parse_broker(
    obj(
        "Broker",
        "rabbitmq",
        {"uri": "amqps://rabbitmq:5671/v%2Fhost", "credentialsSecretRef": {"name": "rabbitmq"}},
    )
)


def queue(name: str = "emails", namespace: str = "app", **spec: Any):
    return parse_queue(
        obj("Queue", name, {"brokerRef": {"name": "rabbitmq", "namespace": "app"}} | spec, namespace)
    )


def consumer(name: str = "worker", queue_ref: dict[str, str] | None = None, **handler: Any):
    spec = {"queueRef": queue_ref or {"name": "emails"}, "handler": {"source": "return 1"} | handler}
    return parse_consumer(obj("Consumer", name, spec | {"concurrency": 4, "drainTimeout": "90s"}))


def compiled(one_consumer, one_queue, code=None, others=()) -> model.Document:
    document = entries_document(
        one_consumer,
        one_queue,
        BROKER,
        code or Code(one_consumer.handler.source),
        cluster=CLUSTER,
        others=others,
    )
    # Through the text, as it goes through a ConfigMap.
    return parse.parse(render.to_text(document), environ={"TOKEN": "from a secret"})


def test_a_consumer_reads_back_as_what_it_means():
    worker = consumer(
        source="function go() end\nreturn {go = go}\n",
        method="go",
        modules=["json"],
        timeout="1m30s",
        memoryLimit="1.5Gi",
        env=[
            {"name": "REGION", "value": "eu: 'west'"},
            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        ],
        libraries=[{"name": "email", "source": "return {}"}],
    )
    document = compiled(worker, queue(), Code(worker.handler.source, {"email": "return {}"}))
    assert document.warnings == ()
    assert document.consumers == {
        Id("app", "worker"): model.Consumer(
            id=Id("app", "worker"),
            queue=Id("app", "emails"),
            handler=model.Handler(
                chunk_name="app:worker",
                source="function go() end\nreturn {go = go}\n",
                method="go",
                modules=("json",),
                imports={"email": ("app:email", "return {}")},
                functions={"app:email": model.Function("app:email", "return {}", modules=("json",))},
                env={
                    "REGION": "eu: 'west'",
                    "TOKEN": "from a secret",
                    "LUNAQ_NAMESPACE": "app",
                    "LUNAQ_CONSUMER": "app:worker",
                    "LUNAQ_QUEUE": "app:emails",
                },
                timeout=90.0,
                memory_limit=1_610_612_736,
            ),
            concurrency=4,
            prefetch=10,
            drain_timeout=90.0,
        )
    }
    driver = document.drivers[Id("app", "rabbitmq")]
    assert (driver.kind, driver.url) == ("amqp", "amqps://rabbitmq.app.svc:5671/v%2Fhost")


def test_an_empty_list_of_modules_reads_back_as_none_allowed():
    worker = Id("app", "worker")
    assert compiled(consumer(), queue()).consumers[worker].handler.modules is None
    assert compiled(consumer(modules=[]), queue()).consumers[worker].handler.modules == ()


def test_the_private_ranges_of_http_client_read_back_as_they_are():
    worker = Id("app", "worker")
    ranges = ["10.96.0.0/12", "fd00::/8"]
    reaching = consumer(modules=["http_client"], httpClient={"privateRanges": ranges})
    assert compiled(reaching, queue()).consumers[worker].handler.private_ranges == tuple(ranges)
    assert compiled(consumer(), queue()).consumers[worker].handler.private_ranges == ()


QUEUES = [
    {},
    {"queueName": "legacy.emails", "codec": "msgpack"},
    {"messageTTL": "1h30m", "maxLength": 10, "maxLengthBytes": 2**40, "singleActiveConsumer": True},
    {"type": "Classic", "maxPriority": 9, "codec": "raw"},
    {"retry": {"maxAttempts": 3, "delays": ["500ms", "1.5s", "1176h"]}},
    {"queueName": "theirs", "managementPolicy": "Observe"},
    {"deadLetter": {"queueRef": {"name": "graveyard"}}},
]


@pytest.mark.parametrize("spec", QUEUES)
def test_a_queue_reads_back_as_its_settings(spec):
    graveyard = queue("graveyard", queueName="grave")
    one = queue(**spec)
    document = compiled(consumer(), one, others=[graveyard])
    dead = graveyard if one.dead_letter else None
    assert document.queues[one.id] == queue_settings(one, cluster=CLUSTER, dead_letter=dead)


@pytest.mark.parametrize("spec", QUEUES)
def test_operator_and_entries_describe_the_same_topology(spec):
    graveyard = queue("graveyard", queueName="grave")
    one = queue(**spec)
    dead = graveyard if one.dead_letter else None
    settings = queue_settings(one, cluster=CLUSTER, dead_letter=dead)
    assert topology_of(settings) == topology_of(compiled(consumer(), one, others=[graveyard]).queues[one.id])


def test_a_pod_declares_nothing_and_the_owner_is_told():
    settings = compiled(consumer(), queue()).queues[Id("app", "emails")]
    assert settings.declare is False
    assert settings.owner == "c1/app/emails"


def test_other_queues_are_told_only_where_their_id_does_not_say_it_all():
    others = [
        queue("plain"),
        queue("named", queueName="legacy"),
        queue("packed", codec="msgpack"),
        queue("watched", managementPolicy="Observe"),
        queue("plain", "mail"),
    ]
    document = compiled(consumer(), queue(), others=others)
    assert set(map(str, document.queues)) == {"app:emails", "app:named", "app:packed", "app:watched"}
    assert document.queues[Id("app", "packed")].codec == "msgpack"
    assert document.queues[Id("app", "watched")].observe is True


def test_a_dead_letter_queue_is_told_however_plain():
    one = queue(deadLetter={"queueRef": {"name": "plain"}})
    document = compiled(consumer(), one, others=[queue("plain"), queue("plain", "mail")])
    assert set(map(str, document.queues)) == {"app:emails", "app:plain"}
    assert document.queues[Id("app", "emails")].dead_letter_queue_name == "app:plain"


def test_a_queue_of_another_namespace_is_known_by_its_own():
    document = compiled(consumer(queue_ref={"name": "emails", "namespace": "mail"}), queue(namespace="mail"))
    assert document.consumers[Id("app", "worker")].queue == Id("mail", "emails")
    assert document.queues[Id("mail", "emails")].queue_name == "mail:emails"


def test_broker_queue_consumer_and_library_may_share_one_name():
    same = parse_broker(obj("Broker", "emails", {"uri": "amqp://h", "credentialsSecretRef": {"name": "s"}}))
    one = queue(brokerRef={"name": "emails"})
    worker = consumer("emails", libraries=[{"name": "emails", "source": "return {}"}])
    text = render.to_text(
        entries_document(worker, one, same, Code("return 1", {"emails": "return {}"}), cluster=CLUSTER)
    )
    document = parse.parse(text)
    name = Id("app", "emails")
    assert (list(document.drivers), list(document.queues), list(document.consumers)) == ([name],) * 3


def test_the_document_does_not_depend_on_the_order_of_what_it_is_made_of():
    others = [queue("b", codec="raw"), queue("a", codec="raw"), queue("c", codec="raw")]
    code, edoc = (
        Code("return 1", {"x": "return 1", "a": "return 2"}),
        Code("return 1", {"a": "return 2", "x": "return 1"}),
    )
    one = entries_document(consumer(), queue(), BROKER, code, cluster=CLUSTER, others=others)
    two = entries_document(consumer(), queue(), BROKER, edoc, cluster=CLUSTER, others=others[::-1])
    assert render.to_text(one) == render.to_text(two)


@pytest.mark.parametrize(
    "source",
    ["-- trailing \n\tx = 1  \n", "return '\u2603: \\0 #'\n\n", "a\r\nb", " lead\nx", "x: |\n  y", "\x07"],
)
def test_lua_survives_the_yaml_letter_by_letter(source):
    document = compiled(consumer(), queue(), Code("return 1\n" + source))
    assert document.consumers[Id("app", "worker")].handler.source == "return 1\n" + source


def test_a_source_that_would_name_a_file_of_the_pod_is_refused():
    with pytest.raises(SpecError, match="begins with file://"):
        compiled(consumer(), queue(), Code("file:///etc/lunaq/credentials/password"))
    with pytest.raises(SpecError, match="library l"):
        compiled(consumer(), queue(), Code("return 1", {"l": "file://x"}))


@pytest.mark.parametrize(
    "policy", [Policy(), Policy(True, ("*:jobs", "app:*"), ("app:emails",)), Policy(True, ("*:*",), ())]
)
def test_a_policy_reads_back(policy):
    text = render.to_text(policy_document(Id("app", "worker"), policy))
    assert parse.policies_of(text) == {Id("app", "worker"): policy}


def test_no_credentials_can_stand_in_the_document():
    document = entries_document(consumer(), queue(), BROKER, Code("return 1"), cluster=CLUSTER)
    assert "@" not in yaml.safe_dump(document)
