"""The Consumer resource: a Lua handler on a Queue, and how its pods run."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lunaq_operator import names
from lunaq_operator.resources.fields import Fields, SpecError
from lunaq_operator.resources.meta import Ref, Resource, read_meta, read_ref
from lunaq_runtime.ids import Id
from lunaq_runtime.networks import check_private_range

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_LUA_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_LUA_NAME_OR_EMPTY = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)?\Z")
_KEY = re.compile(r"[-._a-zA-Z0-9]+\Z")
_OUR_DOMAIN = re.compile(r"([^/]*\.)?lunaq\.dev/")
_LONGEST_NAME = 46
_LONGEST_SOURCE = 524_288
_LONGEST_TIMEOUT = 30 * 60 * 1000 - 1
_DAY = 24 * 3600 * 1000
_LEAST_MEMORY = 1024 * 1024
_LUA_RESERVED = """
    and break do else elseif end false for function goto if in local nil not or repeat return then true
    until while
"""
_PROVIDED = """
    base64 channel coroutine crypto ctx env errors funcs hash http_client json logger math metrics os
    package payload process queue security store string table time uuid _G _ENV _VERSION assert error
    getmetatable ipairs next pairs pcall print rawequal rawget rawset require select setmetatable tonumber
    tostring type unpack xpcall
"""


@dataclass(frozen=True, slots=True)
class KeyRef:
    """One key of a ConfigMap or Secret of the Consumer's namespace."""

    name: str
    key: str


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
class HttpClient:
    """What the module `http_client` may do; `private_ranges` are networks (CIDR) beside the public ones."""

    private_ranges: tuple[str, ...] = ()


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
    http_client: HttpClient = field(default_factory=HttpClient)


@dataclass(frozen=True, slots=True)
class Scaling:
    """Between how many replicas the operator scales; `cooldown` in milliseconds."""

    max_replicas: int
    messages_per_replica: int
    min_replicas: int = 1
    cooldown: int = 300_000


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
    if len(meta.name) > _LONGEST_NAME:
        raise SpecError("metadata.name", f"must have at most {_LONGEST_NAME} characters: pods append 17")
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
        drain_timeout=spec.duration("drainTimeout", "40s", most=_DAY),
        template=spec.child("template", _read_template) or Template(),
    )
    if strict:
        for path in spec.unknown():
            raise SpecError(path, "is not a field of Consumer")
    return consumer


def _read_handler(fields: Fields) -> Handler:
    fields.exactly_one("source", "sourceFrom")
    handler = Handler(
        source=fields.text("source", "", longest=_LONGEST_SOURCE),
        source_from=fields.child("sourceFrom", _read_source_from),
        method=fields.text("method", "", pattern=_LUA_NAME_OR_EMPTY, says="the name of a Lua function"),
        libraries=fields.children("libraries", _read_library, most=20),
        modules=_read_modules(fields),
        env=fields.children("env", _read_env, most=100),
        timeout=fields.duration("timeout", "30s", most=_LONGEST_TIMEOUT),
        memory_limit=fields.quantity("memoryLimit", "64Mi"),
        http_client=fields.child("httpClient", _read_http_client) or HttpClient(),
    )
    if handler.memory_limit < _LEAST_MEMORY:
        raise SpecError(fields.at("memoryLimit"), "must be 1Mi at least (m is a thousandth, Mi a mebibyte)")
    if fields.has("httpClient") and "http_client" not in (handler.modules or ()):
        raise SpecError(fields.at("httpClient"), "has no effect: list http_client in spec.handler.modules")
    _refuse_twice(fields.at("libraries"), [library.name for library in handler.libraries])
    _refuse_twice(fields.at("env"), [variable.name for variable in handler.env])
    return handler


def _read_modules(fields: Fields) -> tuple[str, ...] | None:
    if not fields.has("modules"):
        return None
    modules = fields.texts("modules", most=64)
    for at, name in enumerate(modules):
        if not _LUA_NAME.match(name):
            raise SpecError(f"{fields.at('modules')}[{at}]", f"{name!r} is not the name of a module")
    _refuse_twice(fields.at("modules"), modules)
    return modules


def _read_http_client(fields: Fields) -> HttpClient:
    ranges = fields.texts("privateRanges", most=64)
    for at, text in enumerate(ranges):
        try:
            check_private_range(text)
        except ValueError as error:
            raise SpecError(f"{fields.at('privateRanges')}[{at}]", str(error)) from error
    _refuse_twice(fields.at("privateRanges"), ranges)
    return HttpClient(ranges)


def _refuse_twice(path: str, values: Sequence[str]) -> None:
    for at, value in enumerate(values):
        if value in values[:at]:
            raise SpecError(f"{path}[{at}]", f"{value!r} is there twice")


def _read_source_from(fields: Fields) -> SourceFrom:
    return SourceFrom(fields.required("configMapKeyRef", _read_key_ref))


def _read_key_ref(fields: Fields) -> KeyRef:
    return KeyRef(fields.name(), fields.text("key", pattern=_KEY, says="a key of a ConfigMap or Secret"))


def _read_library(fields: Fields) -> Library:
    fields.exactly_one("source", "sourceFrom")
    name = fields.text("name", pattern=_LUA_NAME, says="a name in Lua")
    if name in _LUA_RESERVED.split():
        raise SpecError(fields.at("name"), f"{name!r} is a reserved word of Lua; choose another name")
    if name in _PROVIDED.split():
        raise SpecError(
            fields.at("name"), f"{name!r} would hide what the runtime provides; choose another name"
        )
    return Library(
        name=name,
        source=fields.text("source", "", longest=_LONGEST_SOURCE),
        source_from=fields.child("sourceFrom", _read_source_from),
    )


def _read_env(fields: Fields) -> Env:
    fields.exactly_one("value", "valueFrom")
    name = fields.text("name", pattern=_LUA_NAME, says="a name of letters, digits and '_'")
    if name.startswith("LUNAQ_"):
        raise SpecError(fields.at("name"), "must not begin with LUNAQ_, which is kept for the runtime")
    return Env(
        name=name,
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
        max_replicas=fields.integer("maxReplicas", least=1),
        messages_per_replica=fields.integer("messagesPerReplica", least=1),
        min_replicas=fields.integer("minReplicas", 1),
        cooldown=fields.duration("cooldown", "5m", most=_DAY),
    )
    if scaling.min_replicas > scaling.max_replicas:
        raise SpecError(fields.at("minReplicas"), "must not be greater than maxReplicas")
    return scaling


def _read_template(fields: Fields) -> Template:
    template = Template(
        labels=fields.texts_by_key("labels"),
        annotations=fields.texts_by_key("annotations"),
        resources=fields.mapping("resources"),
        node_selector=fields.texts_by_key("nodeSelector"),
        tolerations=tuple(item for item, _ in fields.items("tolerations")),
        affinity=fields.mapping("affinity"),
        priority_class_name=fields.name("priorityClassName", ""),
        topology_spread_constraints=tuple(item for item, _ in fields.items("topologySpreadConstraints")),
    )
    for key, values in (("labels", template.labels), ("annotations", template.annotations)):
        for name in values:
            if _OUR_DOMAIN.match(name):
                raise SpecError(f"{fields.at(key)}.{name}", "is in the domain lunaq.dev, the operator's own")
    return template
