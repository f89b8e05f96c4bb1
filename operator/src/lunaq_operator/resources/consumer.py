"""The Consumer resource: a Lua handler on a Queue, and how its pods run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lunaq_operator import names
from lunaq_operator.resources.fields import DNS_SUBDOMAIN, Fields, SpecError
from lunaq_operator.resources.meta import Ref, Resource, read_meta, read_ref
from lunaq_runtime.ids import Id

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class KeyRef:
    """One key of a ConfigMap or Secret of the Consumer's namespace."""

    name: str
    key: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class SourceFrom:
    """Where Lua source stands, if not inline."""

    config_map_key_ref: KeyRef


@dataclass(frozen=True, slots=True)
class Library:
    """Lua source that the handler loads by `require(name)`."""

    name: str
    source: str = ""
    source_from: SourceFrom | None = None


@dataclass(frozen=True, slots=True)
class EnvFrom:
    """Where an environment value stands; one of the two is set."""

    secret_key_ref: KeyRef | None = None
    config_map_key_ref: KeyRef | None = None


@dataclass(frozen=True, slots=True)
class Env:
    """One variable for `env.get`."""

    name: str
    value: str = ""
    value_from: EnvFrom | None = None


@dataclass(frozen=True, slots=True)
class Handler:
    """The Lua side; `timeout` in milliseconds, `memory_limit` in bytes.

    `modules` None: all core and useful modules.
    """

    source: str = ""
    source_from: SourceFrom | None = None
    method: str = ""
    libraries: tuple[Library, ...] = ()
    modules: tuple[str, ...] | None = None
    env: tuple[Env, ...] = ()
    timeout: int = 30_000
    memory_limit: int = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Scaling:
    """Between how many replicas the operator scales; `cooldown` in milliseconds."""

    min_replicas: int = 0
    max_replicas: int = 10
    messages_per_replica: int = 100
    cooldown: int = 120_000


@dataclass(frozen=True, slots=True)
class Template:
    """What goes into the pods as it is."""

    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, Any] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Any, ...] = ()
    affinity: Mapping[str, Any] = field(default_factory=dict)
    priority_class_name: str = ""
    topology_spread_constraints: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Consumer(Resource):
    """A Consumer as its spec means it; `drain_timeout` in milliseconds."""

    queue_ref: Ref
    handler: Handler
    concurrency: int = 1
    prefetch: int = 10
    service_account_name: str = ""
    replicas: int = 1
    scaling: Scaling | None = None
    suspend: bool = False
    drain_timeout: int = 40_000
    template: Template = field(default_factory=Template)

    @property
    def id(self) -> Id:
        """The ID of the Consumer's entry, `<namespace>:<name>`."""
        return Id(self.namespace, self.name)

    @property
    def service_account(self) -> str:
        """The ServiceAccount its pods and its rights go by."""
        return self.service_account_name or names.service_account_name(self.name)


def parse_consumer(obj: Mapping[str, Any], *, strict: bool = False) -> Consumer:
    """Read a Consumer; SpecError names the field. `strict` refuses fields that the schema lacks."""
    meta = read_meta(obj, names.CONSUMER, label_name=True)
    spec = Fields(obj.get("spec"), "spec")
    consumer = Consumer(
        meta=meta,
        queue_ref=spec.required("queueRef", lambda ref: read_ref(ref, meta.namespace)),
        handler=spec.required("handler", _read_handler),
        concurrency=spec.integer("concurrency", 1, least=1, most=1000),
        prefetch=spec.integer("prefetch", 10, least=1, most=10_000),
        service_account_name=spec.name("serviceAccountName", ""),
        replicas=spec.integer("replicas", 1),
        scaling=spec.child("scaling", _read_scaling),
        suspend=spec.flag("suspend", default=False),
        drain_timeout=spec.duration("drainTimeout", "40s"),
        template=spec.child("template", _read_template) or Template(),
    )
    if strict:
        for path in spec.unknown():
            raise SpecError(path, "is not a field of Consumer")
    return consumer


def _read_handler(fields: Fields) -> Handler:
    fields.exactly_one("source", "sourceFrom")
    return Handler(
        source=fields.text("source", ""),
        source_from=fields.child("sourceFrom", _read_source_from),
        method=fields.text("method", ""),
        libraries=fields.children("libraries", _read_library),
        modules=fields.texts("modules") if fields.has("modules") else None,
        env=fields.children("env", _read_env),
        timeout=fields.duration("timeout", "30s"),
        memory_limit=fields.quantity("memoryLimit", "64Mi"),
    )


def _read_source_from(fields: Fields) -> SourceFrom:
    return SourceFrom(fields.required("configMapKeyRef", _read_key_ref))


def _read_key_ref(fields: Fields) -> KeyRef:
    return KeyRef(fields.name(), fields.text("key"), fields.flag("optional", default=False))


def _read_library(fields: Fields) -> Library:
    fields.exactly_one("source", "sourceFrom")
    return Library(
        name=fields.text("name"),
        source=fields.text("source", ""),
        source_from=fields.child("sourceFrom", _read_source_from),
    )


def _read_env(fields: Fields) -> Env:
    if fields.has("value") and fields.has("valueFrom"):
        raise SpecError(fields.path, "has both value and valueFrom")
    return Env(
        name=fields.text("name"),
        value=fields.text("value", ""),
        value_from=fields.child("valueFrom", _read_env_from),
    )


def _read_env_from(fields: Fields) -> EnvFrom:
    fields.exactly_one("secretKeyRef", "configMapKeyRef")
    return EnvFrom(
        secret_key_ref=fields.child("secretKeyRef", _read_key_ref),
        config_map_key_ref=fields.child("configMapKeyRef", _read_key_ref),
    )


def _read_scaling(fields: Fields) -> Scaling:
    scaling = Scaling(
        fields.integer("minReplicas", 0),
        fields.integer("maxReplicas", least=1),
        fields.integer("messagesPerReplica", 100, least=1),
        fields.duration("cooldown", "2m"),
    )
    if scaling.min_replicas > scaling.max_replicas:
        raise SpecError(fields.at("minReplicas"), "is greater than maxReplicas")
    return scaling


def _read_template(fields: Fields) -> Template:
    return Template(
        labels=fields.texts_by_key("labels"),
        annotations=fields.texts_by_key("annotations"),
        resources=fields.mapping("resources"),
        node_selector=fields.texts_by_key("nodeSelector"),
        tolerations=tuple(item for item, _ in fields.items("tolerations")),
        affinity=fields.mapping("affinity"),
        priority_class_name=fields.text("priorityClassName", "", pattern=DNS_SUBDOMAIN, says="a name"),
        topology_spread_constraints=tuple(item for item, _ in fields.items("topologySpreadConstraints")),
    )
