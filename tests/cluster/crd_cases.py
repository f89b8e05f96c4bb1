"""What the CRDs refuse and accept, as tables; run against a real API server by tests/cluster/test_crds_*.py.

tests/unit/test_crds.py reads them too: a CEL rule that no row names fails there.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

Object = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Refusal:
    """`obj` breaks one rule: the one whose message begins with `says`."""

    says: str
    obj: Object

    @property
    def title(self) -> str:
        return f"{self.obj['kind']}: {self.says}"


@dataclasses.dataclass(frozen=True)
class Change:
    """An update; `says` is how the message of the rule that refuses it begins, "" where it is allowed."""

    title: str
    before: Object
    after: Object
    says: str = ""


_BASES: dict[str, Object] = {
    "Broker": {"uri": "amqp://rabbitmq:5672", "credentialsSecretRef": {"name": "rabbitmq-credentials"}},
    "Queue": {"brokerRef": {"name": "rabbitmq"}},
    "Consumer": {"queueRef": {"name": "emails"}, "handler": {"source": "return print"}},
}


def _merged(base: Object, changes: Object) -> Object:
    """Merge as a JSON merge patch does: None removes."""
    result = copy.deepcopy(base)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = _merged(result[key], value)
        else:
            result[key] = value
    return result


def _object(kind: str, name: str, changes: Object) -> Object:
    return {
        "apiVersion": "lunaq.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": _merged(_BASES[kind], changes),
    }


def broker(name: str = "rabbitmq", /, **changes: Any) -> Object:
    return _object("Broker", name, changes)


def queue(name: str = "emails", /, **changes: Any) -> Object:
    return _object("Queue", name, changes)


def consumer(name: str = "email-worker", /, **changes: Any) -> Object:
    return _object("Consumer", name, changes)


def handler(**changes: Any) -> Object:
    return consumer(handler=changes)


def library(**fields: Any) -> Object:
    return handler(libraries=[{"name": "email", "source": "return {}"} | fields])


def env(**fields: Any) -> Object:
    return handler(env=[{"name": "A"} | fields])


def delays(*texts: str) -> Object:
    return queue(retry={"delays": list(texts)})


_MANAGEMENT = {"uri": "http://rabbitmq:15672"}
_LIBRARY_FROM = {"source": None, "sourceFrom": {"configMapKeyRef": {"name": "lib", "key": "lib.lua"}}}


def _library_from(**ref: str) -> Object:
    ref = {"name": "lib", "key": "lib.lua"} | ref
    return handler(libraries=[{"name": "email", "sourceFrom": {"configMapKeyRef": ref}}])


def _handler_from(**ref: str) -> Object:
    ref = {"name": "code", "key": "code.lua"} | ref
    return handler(source=None, sourceFrom={"configMapKeyRef": ref})


def _env_from(kind: str, **ref: str) -> Object:
    return env(valueFrom={kind: {"name": "settings", "key": "host"} | ref})


def _selector(selector: Object) -> Object:
    return broker(management=_MANAGEMENT, allowedNamespaces={"from": "Selector", "selector": selector})


BROKERS = [
    Refusal("metadata.name must have at most 63 characters", broker("b" * 64)),
    *(
        Refusal("spec.uri must begin with amqp:// or amqps://", broker(uri=uri))
        for uri in ("http://rabbitmq:15672", "rabbitmq:5672", "rabbitmq", "AMQP://rabbitmq", "amqp:rabbitmq")
    ),
    *(
        Refusal("spec.uri must not carry credentials", broker(uri=uri))
        for uri in (
            "amqp://user:secret@rabbitmq",
            "amqp://user@rabbitmq:5672/app",
            "amqps://:@rabbitmq",
            "amqp://a:b@c@rabbitmq",
        )
    ),
    *(
        Refusal("spec.uri must name a host after ://", broker(uri=uri))
        for uri in (
            "amqp://",
            "amqp:///app",
            "amqp://:5672",
            "amqp://rabbit mq",
            "amqp://[fe80::1",
            "amqp://-a",
        )
    ),
    *(
        Refusal("spec.uri must have a port from 1 to 65535", broker(uri=uri))
        for uri in ("amqp://rabbitmq:", "amqp://rabbitmq:0", "amqp://rabbitmq:65536", "amqp://[::1]:x/app")
    ),
    *(
        Refusal("spec.uri must have one path segment at most", broker(uri=uri))
        for uri in ("amqp://rabbitmq/a/b", "amqp://rabbitmq/a%2", "amqp://rabbitmq/a b", "amqp://rabbitmq//")
    ),
    *(
        Refusal("spec.uri may carry only the query parameters", broker(uri=f"amqp://rabbitmq/app{end}"))
        for end in (
            "?cacertfile=/etc/passwd",
            "?heartbeat=65536",
            "?heartbeat=ten",
            "?connection_timeout=0",
            "?heartbeat=10&verify=verify_none",
            "#app",
        )
    ),
    Refusal(
        "spec.credentialsSecretRef.name must be", broker(credentialsSecretRef={"name": "../configmaps/x"})
    ),
    Refusal(
        "spec.runtimeCredentialsSecretRef.name must be",
        broker(runtimeCredentialsSecretRef={"name": "Rabbit_MQ"}),
    ),
    Refusal("spec.tls needs an encrypted connection", broker(tls={"serverName": "rabbitmq"})),
    Refusal(
        "spec.tls.caSecretRef.name must be",
        broker(uri="amqps://rabbitmq", tls={"caSecretRef": {"name": "a/b"}}),
    ),
    Refusal(
        "spec.tls.caSecretRef.key must be",
        broker(uri="amqps://rabbitmq", tls={"caSecretRef": {"name": "ca", "key": "a/b"}}),
    ),
    Refusal(
        "spec.tls.clientCertificateSecretRef.name must be",
        broker(uri="amqps://rabbitmq", tls={"clientCertificateSecretRef": {"name": "-a"}}),
    ),
    Refusal("spec.tls.serverName must be", broker(uri="amqps://rabbitmq", tls={"serverName": "a:5671"})),
    Refusal("spec.management.uri must begin with http", broker(management={"uri": "amqp://rabbitmq"})),
    Refusal(
        "spec.management.uri must not carry credentials", broker(management={"uri": "http://u:p@rabbitmq"})
    ),
    *(
        Refusal("spec.management.uri must name a host", broker(management={"uri": uri}))
        for uri in ("http://", "https://:15672", "http://rabbitmq:", "http://rabbitmq:99999/api")
    ),
    *(
        Refusal("spec.management.uri must have no query", broker(management={"uri": f"http://rabbitmq{end}"}))
        for end in ("/?a=b", "/#a", "/a b")
    ),
    Refusal("spec.access PerConsumer needs spec.management", broker(access="PerConsumer")),
    Refusal(
        "spec.runtimeCredentialsSecretRef works only with access Shared",
        broker(access="PerConsumer", management=_MANAGEMENT, runtimeCredentialsSecretRef={"name": "pods"}),
    ),
    Refusal(  # management set and access left out is PerConsumer
        "spec.runtimeCredentialsSecretRef works only with access Shared",
        broker(management=_MANAGEMENT, runtimeCredentialsSecretRef={"name": "pods"}),
    ),
    Refusal(  # neither set is Shared
        "spec.allowedNamespaces.from other than Same needs access PerConsumer",
        broker(allowedNamespaces={"from": "All"}),
    ),
    Refusal(
        "spec.allowedNamespaces.from other than Same needs access PerConsumer",
        broker(access="Shared", management=_MANAGEMENT, allowedNamespaces={"from": "All"}),
    ),
    Refusal(
        "spec.allowedNamespaces.selector goes with from Selector",
        broker(management=_MANAGEMENT, allowedNamespaces={"from": "Selector"}),
    ),
    Refusal(
        "spec.allowedNamespaces.selector goes with from Selector",
        broker(allowedNamespaces={"selector": {"matchLabels": {"team": "a"}}}),
    ),
    Refusal("spec.allowedNamespaces.selector must not be empty", _selector({})),
    Refusal("spec.allowedNamespaces.selector must not be empty", _selector({"matchLabels": {}})),
    Refusal(
        "spec.allowedNamespaces.selector.matchExpressions[].values must be set",
        _selector({"matchExpressions": [{"key": "team", "operator": "In"}]}),
    ),
    Refusal(
        "spec.allowedNamespaces.selector.matchExpressions[].values must be set",
        _selector({"matchExpressions": [{"key": "team", "operator": "Exists", "values": ["a"]}]}),
    ),
]

QUEUES = [
    Refusal("metadata.name must be a DNS label, without dots", queue("emails.dead")),
    Refusal("metadata.name must be a DNS label of at most 63", queue("q" * 64)),
    Refusal(
        "spec.deadLetter.queueRef.name must name another Queue",
        queue("emails", deadLetter={"queueRef": {"name": "emails"}}),
    ),
    Refusal(
        "spec.deadLetter.queueRef.name must be the name", queue(deadLetter={"queueRef": {"name": "a.b"}})
    ),
    Refusal("spec.brokerRef.name must be", queue(brokerRef={"name": "a/b"})),
    Refusal("spec.brokerRef.namespace must be", queue(brokerRef={"namespace": "a.b"})),
    Refusal("spec.queueName must not contain a colon", queue(queueName="other:emails")),
    Refusal("spec.queueName must have at most 200 bytes", queue(queueName="é" * 101)),
    *(
        Refusal("spec.queueName must have no control characters", queue(queueName=name))
        for name in ("amq.gen-1", "a\nb", "a\x7f")
    ),
    *(
        Refusal("spec.messageTTL must be a duration", queue(messageTTL=text))
        for text in ("0s", "-5s", "1d", "5", "1.5", "0.5ms", "1177h", "soon")
    ),
    *(
        Refusal("spec.retry.delays[] must be durations", delays("1s", text))
        for text in ("0s", "-1s", "1d", "10", "1µs", "99999h")
    ),
    *(
        Refusal(f"spec.{field} works only with type Quorum", queue(type="Classic", **{field: value}))
        for field, value in (("messageTTL", "1h"), ("maxLength", 10), ("maxLengthBytes", 10))
    ),
    Refusal("spec.maxPriority works only with type Classic", queue(maxPriority=9)),
    *(
        Refusal(
            f"spec.{field} cannot be {verb} with managementPolicy Observe",
            queue(managementPolicy="Observe", **{"queueName": "legacy", field: value}),
        )
        for field, verb, value in (
            ("messageTTL", "set", "1h"),
            ("maxLength", "set", 10),
            ("maxLengthBytes", "set", 10),
            ("singleActiveConsumer", "true", True),
            ("deadLetter", "set", {"queueRef": {"name": "other"}}),
            ("retry", "set", {"maxAttempts": 3}),
            ("retry", "set", {"delays": ["1s"]}),
            ("deletionPolicy", "Delete", "Delete"),
        )
    ),
    Refusal(
        "spec.maxPriority cannot be set with managementPolicy Observe",
        queue(managementPolicy="Observe", type="Classic", maxPriority=9),
    ),
]

CONSUMERS = [
    Refusal("metadata.name must be a DNS label, without dots", consumer("email.worker")),
    Refusal("metadata.name must have at most 46 characters", consumer("c" * 47)),
    Refusal("spec.queueRef.name must be", consumer(queueRef={"name": "a.b"})),
    Refusal("spec.queueRef.namespace must be", consumer(queueRef={"namespace": "App"})),
    Refusal("spec.handler must have exactly one of source and sourceFrom", handler(source=None)),
    Refusal(
        "spec.handler must have exactly one of source and sourceFrom",
        handler(sourceFrom={"configMapKeyRef": {"name": "code", "key": "code.lua"}}),
    ),
    Refusal("spec.handler.sourceFrom.configMapKeyRef.name must be", _handler_from(name="a/b")),
    Refusal("spec.handler.sourceFrom.configMapKeyRef.key must be", _handler_from(key="a/b")),
    Refusal("spec.handler.method must be", handler(method="mails:handle")),
    Refusal("spec.handler.modules[] must be", handler(modules=["json", "http-client"])),
    Refusal(
        "spec.handler.httpClient has no effect",
        handler(modules=["json"], httpClient={"privateRanges": ["10.0.0.0/8"]}),
    ),
    Refusal(
        "spec.handler.httpClient.privateRanges[] must be",
        handler(modules=["http_client"], httpClient={"privateRanges": ["10.0.0.0"]}),
    ),
    Refusal("spec.handler.libraries[] must have exactly one", library(source=None)),
    Refusal(
        "spec.handler.libraries[] must have exactly one", library(**_LIBRARY_FROM | {"source": "return 1"})
    ),
    Refusal("spec.handler.libraries[].name must be a name in Lua", library(name="my-email")),
    Refusal("spec.handler.libraries[].name must not be a reserved word", library(name="end")),
    *(
        Refusal("spec.handler.libraries[].name must not be the name of a module", library(name=name))
        for name in ("queue", "utf8", "print")
    ),
    Refusal("spec.handler.libraries[].sourceFrom.configMapKeyRef.name must be", _library_from(name="Lib")),
    Refusal("spec.handler.libraries[].sourceFrom.configMapKeyRef.key must be", _library_from(key="a b")),
    Refusal("spec.handler.env[] must have exactly one of value", env()),
    Refusal(
        "spec.handler.env[] must have exactly one of value",
        env(value="", valueFrom={"secretKeyRef": {"name": "a", "key": "b"}}),
    ),
    Refusal("spec.handler.env[].name must be a name", env(name="1A", value="x")),
    Refusal("spec.handler.env[].name must not begin with LUNAQ_", env(name="LUNAQ_NAMESPACE", value="x")),
    Refusal("spec.handler.env[].valueFrom must have exactly one", env(valueFrom={})),
    Refusal(
        "spec.handler.env[].valueFrom must have exactly one",
        env(
            valueFrom={
                "secretKeyRef": {"name": "a", "key": "b"},
                "configMapKeyRef": {"name": "a", "key": "b"},
            }
        ),
    ),
    *(
        Refusal(f"spec.handler.env[].valueFrom.{kind}.{field} must be", _env_from(kind, **{field: "a/b"}))
        for kind in ("secretKeyRef", "configMapKeyRef")
        for field in ("name", "key")
    ),
    *(
        Refusal("spec.handler.timeout must be a duration", handler(timeout=text))
        for text in ("0s", "-5s", "1d", "30", "30m", "soon")
    ),
    *(
        Refusal("spec.handler.memoryLimit must be a quantity", handler(memoryLimit=text))
        for text in ("64m", "0", "-64Mi", "lots", "1000Ki")
    ),
    Refusal("spec.serviceAccountName must be", consumer(serviceAccountName="a/b")),
    Refusal(
        "spec.scaling.minReplicas must not be greater",
        consumer(scaling={"minReplicas": 5, "maxReplicas": 4, "messagesPerReplica": 20}),
    ),
    *(
        Refusal(
            "spec.scaling.cooldown must be a duration",
            consumer(scaling={"maxReplicas": 4, "messagesPerReplica": 20, "cooldown": text}),
        )
        for text in ("0s", "-1m", "2d", "25h")
    ),
    *(
        Refusal("spec.drainTimeout must be a duration", consumer(drainTimeout=text))
        for text in ("0s", "-1m", "2d", "25h", "40")
    ),
    *(
        Refusal(
            f"spec.template.{field} must have no keys in the domain", consumer(template={field: {key: "x"}})
        )
        for field in ("labels", "annotations")
        for key in ("lunaq.dev/consumer", "policy.lunaq.dev/a")
    ),
    Refusal("spec.template.priorityClassName must be", consumer(template={"priorityClassName": "High"})),
]

REFUSALS = BROKERS + QUEUES + CONSUMERS

_CLASSIC = queue(type="Classic")

REFUSED_CHANGES = [
    Change(
        "the Broker of a Queue",
        queue(),
        queue(brokerRef={"name": "other"}),
        "spec.brokerRef cannot be changed",
    ),
    Change(
        "the Broker's namespace, added",
        queue(),
        queue(brokerRef={"namespace": "other"}),
        "spec.brokerRef cannot be changed",
    ),
    Change(
        "queueName, changed", queue(queueName="a"), queue(queueName="b"), "spec.queueName cannot be added"
    ),
    Change("queueName, added", queue(), queue(queueName="b"), "spec.queueName cannot be added"),
    Change("queueName, removed", queue(queueName="a"), queue(), "spec.queueName cannot be added"),
    Change("type", queue(), _CLASSIC, "spec.type cannot be changed"),
    Change("type, removed", _CLASSIC, queue(), "spec.type cannot be changed"),
    Change(
        "singleActiveConsumer",
        queue(),
        queue(singleActiveConsumer=True),
        "spec.singleActiveConsumer cannot be changed",
    ),
    Change(
        "singleActiveConsumer, removed",
        queue(singleActiveConsumer=True),
        queue(),
        "spec.singleActiveConsumer cannot be changed",
    ),
    Change(
        "maxPriority, changed",
        queue(type="Classic", maxPriority=5),
        queue(type="Classic", maxPriority=9),
        "spec.maxPriority cannot be added",
    ),
    Change(
        "maxPriority, added",
        _CLASSIC,
        queue(type="Classic", maxPriority=9),
        "spec.maxPriority cannot be added",
    ),
    Change(
        "maxPriority, removed",
        queue(type="Classic", maxPriority=5),
        _CLASSIC,
        "spec.maxPriority cannot be added",
    ),
]

ALLOWED_CHANGES = [
    Change("a Broker's uri", broker(), broker(uri="amqps://other/app")),
    Change("a Broker's credentials", broker(), broker(credentialsSecretRef={"name": "other"})),
    Change("a Queue's retry", queue(), queue(retry={"maxAttempts": 2, "delays": ["5s"]})),
    # The broker cannot change these either, but the operator reports it: a policy may carry them one day.
    Change("a Queue's messageTTL, added", queue(), queue(messageTTL="1h")),
    Change("a Queue's lengths", queue(maxLength=5), queue(maxLength=9, maxLengthBytes=1000)),
    Change("a Queue's dead letters", queue(), queue(deadLetter={"queueRef": {"name": "other"}})),
    Change("a Queue's codec", queue(), queue(codec="msgpack")),
    Change("a Queue's policies", queue(), queue(deletionPolicy="Delete")),
    Change("a Queue from Observe to Full", queue(managementPolicy="Observe"), queue()),
    Change("nothing of a Queue with every fixed field", queue(queueName="a"), queue(queueName="a")),
    Change("a Consumer's Queue", consumer(), consumer(queueRef={"name": "other", "namespace": "b"})),
    Change("a Consumer's handler", consumer(), _handler_from()),
    Change("a Consumer's replicas", consumer(), consumer(replicas=0, suspend=True)),
]

_QUEUE_DEFAULTS = {
    "type": "Quorum",
    "codec": "json",
    "singleActiveConsumer": False,
    "retry": {"maxAttempts": 5, "delays": ["1s", "10s", "1m"]},
    "managementPolicy": "Full",
    "deletionPolicy": "Retain",
}
_CONSUMER_DEFAULTS = {
    "handler": {"source": "return print", "method": "", "timeout": "30s", "memoryLimit": "64Mi"},
    "concurrency": 1,
    "prefetch": 10,
    "replicas": 1,
    "suspend": False,
    "drainTimeout": "40s",
}

SPECS_WITH_DEFAULTS: list[tuple[Object, Object]] = [
    (broker(), {"allowedNamespaces": {"from": "Same"}}),
    (queue(), _QUEUE_DEFAULTS),
    (
        queue(retry={"maxAttempts": 2}),
        _QUEUE_DEFAULTS | {"retry": {"maxAttempts": 2, "delays": ["1s", "10s", "1m"]}},
    ),
    (
        queue(retry={"delays": ["5s"]}),
        _QUEUE_DEFAULTS | {"retry": {"maxAttempts": 5, "delays": ["5s"]}},
    ),
    (consumer(), _CONSUMER_DEFAULTS),
    (
        consumer(scaling={"maxReplicas": 3, "messagesPerReplica": 20}),
        _CONSUMER_DEFAULTS
        | {"scaling": {"minReplicas": 1, "maxReplicas": 3, "messagesPerReplica": 20, "cooldown": "5m"}},
    ),
]
"""Objects, and what their specs have besides, or instead, once they are stored."""

ACCEPTED = [
    *(
        broker(uri=uri)
        for uri in (
            "amqp://rabbitmq",
            "amqps://rabbit.example.org:5671/app",
            "amqp://10.0.0.1:5672/",
            "amqp://[::1]:5672/%2F",
            "amqp://rabbitmq/a@b:c",
            "amqp://rabbitmq?heartbeat=0",
            "amqp://rabbitmq/app?heartbeat=30&connection_timeout=5000",
            "amqp://rabbitmq:65535",
        )
    ),
    broker("b" * 63),
    broker(runtimeCredentialsSecretRef={"name": "pods"}),
    broker(access="Shared", management=_MANAGEMENT, runtimeCredentialsSecretRef={"name": "pods"}),
    broker(
        uri="amqps://rabbitmq",
        tls={
            "caSecretRef": {"name": "ca"},
            "clientCertificateSecretRef": {"name": "client"},
            "serverName": "rabbit.example.org",
        },
        management={"uri": "https://rabbitmq:15671/rabbit"},
        access="PerConsumer",
        allowedNamespaces={
            "from": "Selector",
            "selector": {
                "matchLabels": {"team": "a"},
                "matchExpressions": [{"key": "stage", "operator": "In", "values": ["test", "live"]}],
            },
        },
    ),
    broker(management=_MANAGEMENT, allowedNamespaces={"from": "All"}),
    broker(management=_MANAGEMENT, allowedNamespaces={"from": "Same"}),
    queue("q" * 63),
    queue(
        brokerRef={"namespace": "brokers"},
        codec="raw",
        messageTTL="1h30m0.5s",
        maxLength=1_000_000,
        maxLengthBytes=1_000_000_000,
        singleActiveConsumer=True,
        retry={"maxAttempts": 1, "delays": ["500ms", "1s", "1m30s", "1h", "1176h"]},
        deadLetter={"queueRef": {"name": "graveyard"}},
        deletionPolicy="Delete",
    ),
    queue(type="Classic", maxPriority=255, queueName="orders.in"),
    queue(managementPolicy="Observe", queueName="legacy.orders"),
    # Written out, the defaults are the defaults.
    queue(managementPolicy="Observe", retry={"maxAttempts": 5, "delays": ["1s", "10s", "1m"]}),
    consumer("c" * 46),
    consumer(
        queueRef={"namespace": "other"},
        handler={
            "source": None,
            "sourceFrom": {"configMapKeyRef": {"name": "code", "key": "code.lua"}},
            "method": "handle_email",
            "modules": ["http_client", "json"],
            "httpClient": {"privateRanges": ["10.96.0.0/12", "fd00::/8"]},
            "libraries": [
                {"name": "email", "source": "return {}"},
                {"name": "sms", "sourceFrom": {"configMapKeyRef": {"name": "lib", "key": "sms.lua"}}},
            ],
            "env": [
                {"name": "EMPTY", "value": ""},
                {"name": "HOST", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "host"}}},
                {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "settings", "key": "key"}}},
            ],
            "timeout": "29m59s",
            "memoryLimit": "1Gi",
        },
        concurrency=1000,
        prefetch=10000,
        serviceAccountName="worker",
        replicas=0,
        scaling={"minReplicas": 0, "maxReplicas": 10, "messagesPerReplica": 20, "cooldown": "1m"},
        suspend=True,
        drainTimeout="5m",
        template={
            "labels": {"team": "mail", "app.kubernetes.io/part-of": "mail"},
            "annotations": {"prometheus.io/scrape": "true"},
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": 1}},
            "nodeSelector": {"kubernetes.io/arch": "amd64"},
            "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [
                            {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
                        ]
                    }
                },
                "podAntiAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {
                            "weight": 100,
                            "podAffinityTerm": {
                                "topologyKey": "kubernetes.io/hostname",
                                "labelSelector": {"matchLabels": {"lunaq.dev/consumer": "email-worker"}},
                            },
                        }
                    ]
                },
            },
            "priorityClassName": "high",
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "topology.kubernetes.io/zone",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": {"lunaq.dev/consumer": "email-worker"}},
                }
            ],
        },
    ),
]
