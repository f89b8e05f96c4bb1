"""From documents to what runs: the operator's decisions, made once, for files instead of a cluster.

Pure. It follows the references, derives policies and compiles with the very functions the reconcilers use;
what they would report in a status is told here as a mistake, by file, object and field, or as a note.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lunaq_operator import compile as compiler
from lunaq_operator import conditions, kinds, names, references
from lunaq_operator.local.files import Found, LocalError
from lunaq_operator.rbac import Rbac
from lunaq_operator.reconcile import resolve
from lunaq_operator.reconcile.context import NotReady
from lunaq_operator.resources import SpecError, parse_broker, parse_consumer, parse_queue
from lunaq_operator.store import Key, Store, key_of
from lunaq_runtime.entries import files as entries_files
from lunaq_runtime.entries.parse import EntriesError, parse
from lunaq_runtime.ids import Id
from lunaq_runtime.lua.check import load_error
from lunaq_runtime.policy import ALLOW_ALL, CONSUME, DENY_ALL, PUBLISH, PUBLISH_TO
from lunaq_runtime.topology import QueueDecl, Topology, combine, topology_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from lunaq_operator.resources import Broker, Consumer, KeyRef, Queue, SourceFrom
    from lunaq_operator.store import Obj
    from lunaq_runtime.entries import model
    from lunaq_runtime.policy import Policy

CLUSTER = "local"
"""The cluster in the owner of what is declared."""

_PARSERS: dict[str, Callable[..., Any]] = {
    names.BROKER: parse_broker,
    names.QUEUE: parse_queue,
    names.CONSUMER: parse_consumer,
}
_PUBLISH = re.compile(r"""queue\.publish\s*\(\s*["']([^"'\\]+)["']""")
_OUR_KINDS = {kind.kind: kind for kind in kinds.OURS}
_RBAC_KINDS = {kind.kind: kind for kind in kinds.RBAC}
_VALUE_KINDS = ("ConfigMap", "Secret")
_SILENT_KINDS = ("ServiceAccount", "Namespace")
"""What a cluster needs and a laptop does not."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What `LocalRun` runs.

    `documents` are what pods would run, one each. `queues` are all that are there, to declare, to publish
    to and to look at. `notes` are for the reader: what is different from what they may think.
    """

    documents: tuple[model.Document, ...]
    queues: Mapping[Id, model.Queue]
    policies: Mapping[Id, Policy]
    notes: tuple[str, ...] = ()


def topology(plan: Plan, driver: Id, *, alone: bool) -> Topology:
    """Describe what must be declared on one broker.

    `alone`: nobody else will, as on a memory broker; somebody else's queues are then there as bare ones.
    """
    queues = [queue for queue in plan.queues.values() if queue.driver == driver]
    if not alone:
        return combine(topology_of(queue) for queue in queues if queue.declare)
    bare = Topology(queues=tuple(QueueDecl(queue.queue_name) for queue in queues if queue.observe))
    return combine([bare, *(topology_of(queue) for queue in queues)])


def is_entries(found: Found) -> bool:
    """Tell whether a document is an entries document rather than a resource."""
    document = found.document
    return "apiVersion" not in document and ("entries" in document or "." in str(document.get("kind")))


def plan_entries(found: Found, environ: Mapping[str, str], *, allow_all: bool = False) -> Plan:
    """Plan an entries document: it declares its queues and carries its policies itself."""
    try:
        document = entries_files.load(found.path, environ)
    except EntriesError as error:
        raise LocalError([f"{found.path}: {text}" for text in error.errors]) from None
    policies = dict.fromkeys(document.consumers, ALLOW_ALL) if allow_all else document.policies
    notes = [
        f"{found.path}: consumer {consumer.id} may not consume {consumer.queue}: add an entry of kind "
        "security.policy, or use --allow-all"
        for consumer in document.consumers.values()
        if not _may_consume(policies.get(consumer.id), consumer)
    ]
    problems = _load_errors(document, str(found.path))
    if problems:
        raise LocalError(problems)
    return Plan((document,), document.queues, policies, notes=tuple(notes))


def plan_resources(
    found: Sequence[Found], namespace: str, environ: Mapping[str, str], *, allow_all: bool = False
) -> Plan:
    """Plan resources: LocalError has every mistake. `namespace` is where objects are that name none."""
    return _Planner(namespace, environ, allow_all=allow_all).plan(found)


def denied_publishes(plan: Plan) -> list[str]:
    """Name the queues that handlers publish to by a literal ID and may not; what is computed is not seen."""
    notes = []
    for document in plan.documents:
        for consumer in document.consumers.values():
            policy = plan.policies.get(consumer.id, DENY_ALL)
            sources = (consumer.handler.source, *(text for _, text in consumer.handler.imports.values()))
            for queue in published_to(sources):
                if not (policy.allows(PUBLISH) and policy.allows(PUBLISH_TO, queue)):
                    notes.append(f"Consumer {consumer.id} publishes to {queue}, which its policy denies")
                elif Id.parse(queue) not in plan.queues:
                    notes.append(f"Consumer {consumer.id} publishes to {queue}, which is not in the files")
    return notes


def published_to(sources: Iterable[str]) -> list[str]:
    """Return the queue IDs that Lua publishes to literally, sorted; what is computed is not seen."""
    return sorted({queue for source in sources for queue in _PUBLISH.findall(source)})


def rights(found: Sequence[Found], namespace: str) -> tuple[Rbac, list[Consumer]]:
    """Return the RBAC objects of documents, indexed, and the Consumers; LocalError has every mistake."""
    return _Planner(namespace, {}, allow_all=False).rights(found)


class _Planner:
    """One planning: collects objects, then mistakes and notes, over all documents."""

    def __init__(self, namespace: str, environ: Mapping[str, str], *, allow_all: bool) -> None:
        self._namespace = namespace
        self._environ = environ
        self._allow_all = allow_all
        self._where: dict[tuple[str, Key], str] = {}
        self._store = Store(kinds.watched(cluster_wide=True))
        references.add_indexes(self._store)
        self._values: dict[tuple[str, Key], dict[str, str]] = {}
        self._parsed: dict[tuple[str, Key], Any] = {}
        self._problems: list[str] = []
        self._notes: list[str] = []

    def rights(self, found: Sequence[Found]) -> tuple[Rbac, list[Consumer]]:
        self._take_all(found)
        if self._problems:
            raise LocalError(self._problems)
        return self._rbac(), self._all(names.CONSUMER)

    def plan(self, found: Sequence[Found]) -> Plan:
        self._take_all(found)
        queues = {queue.id: queue for queue in self._all(names.QUEUE)}
        settings = {queue.id: self._settings(queue) for queue in queues.values()}
        known = {queue_id: one for queue_id, one in settings.items() if one is not None}
        rbac = self._rbac()
        documents: list[model.Document] = []
        policies: dict[Id, Policy] = {}
        sound = {queue_id: queues[queue_id] for queue_id in known}
        for consumer in self._all(names.CONSUMER):
            document = self._consumer(consumer, sound)
            if document is not None:
                documents.append(document)
                policies[consumer.id] = self._policy(consumer, rbac)
        if not self._problems and not queues:
            self._problems.append("there is no Queue in the given files, so there is nothing to run")
        if self._problems:
            raise LocalError(self._problems)
        return Plan(tuple(documents), known, policies, tuple(self._notes))

    def _take_all(self, found: Sequence[Found]) -> None:
        for number, one in enumerate(found):
            self._take(one, number)

    def _rbac(self) -> Rbac:
        return Rbac.build(*(self._store[kind].objects.values() for kind in _BUILD_ORDER))

    def _all(self, kind: str) -> list[Any]:
        return [parsed for (its, _), parsed in self._parsed.items() if its == kind]

    def _take(self, found: Found, number: int) -> None:
        """Sort one document in, as the API server would: by kind, with its namespace filled in."""
        document = found.document
        metadata = document.get("metadata")
        kind = document.get("kind")
        if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str) or not kind:
            self._problems.append(f"{found.where}: needs apiVersion, kind and metadata.name")
            return
        rbac = _RBAC_KINDS.get(kind)
        if rbac is None or rbac.namespaced:
            metadata.setdefault("namespace", self._namespace)
        metadata["uid"] = f"{number:06d}"
        key = key_of(document)
        if (kind, key) in self._where:
            self._problems.append(f"{found.where}: {kind} {key} is in {self._where[kind, key]} already")
            return
        self._where[kind, key] = found.where
        if kind in _OUR_KINDS:
            self._take_ours(kind, key, document)
        elif rbac is not None:
            self._take_rbac(rbac, key, document)
        elif kind in _VALUE_KINDS:
            self._take_values(kind, key, document)
        elif kind not in _SILENT_KINDS:
            self._notes.append(f"{found.where}: {kind} {key} is ignored: only Lunaq's and RBAC's kinds count")

    def _take_ours(self, kind: str, key: Key, document: Obj) -> None:
        try:
            self._parsed[kind, key] = _PARSERS[kind](document, strict=True)
        except SpecError as error:
            self._problem(kind, key, f"{error.field}: {error.reason}")
        else:
            self._store[_OUR_KINDS[kind]].put(document)

    def _take_rbac(self, kind: kinds.Kind, key: Key, document: Obj) -> None:
        if document.get("apiVersion") != kind.api_version:
            self._problem(kind.kind, key, f"apiVersion: must be {kind.api_version}")
        for name, wanted in (("rules", list), ("subjects", list), ("roleRef", dict)):
            value = document.get(name)
            inner = value if isinstance(value, list) else []
            if value is not None and not (
                isinstance(value, wanted) and all(isinstance(i, dict) for i in inner)
            ):
                self._problem(
                    kind.kind,
                    key,
                    f"{name}: must be {'a list of objects' if wanted is list else 'an object'}",
                )
                return
        self._store[kind].put(document)

    def _take_values(self, kind: str, key: Key, document: Obj) -> None:
        values: dict[str, str] = {}
        for name, value in (document.get("data") or {}).items():
            try:
                values[name] = (
                    base64.b64decode(value, validate=True).decode() if kind == "Secret" else str(value)
                )
            except (binascii.Error, UnicodeDecodeError, TypeError, ValueError):
                self._problem(kind, key, f"data.{name}: is not base64 of a text")
        values |= {name: str(value) for name, value in (document.get("stringData") or {}).items()}
        self._values[kind, key] = values

    def _settings(self, queue: Queue) -> model.Queue | None:
        obj = self._store[kinds.QUEUES].get(*queue.key)
        try:
            resolve.broker_for(self._store, queue)
            if obj is not None:
                resolve.refuse_conflict(self._store, obj, queue)
            dead_letter = resolve.dead_letter_of(self._store, queue)
        except NotReady as outcome:
            self._problem(names.QUEUE, Key(*queue.key), f"{outcome.reason}: {outcome.message}")
            return None
        return compiler.queue_settings(queue, cluster=CLUSTER, dead_letter=dead_letter, declare=True)

    def _consumer(self, consumer: Consumer, queues: Mapping[Id, Queue]) -> model.Document | None:
        """Compile one Consumer, or note why it is not run."""
        key = Key(*consumer.key)
        if consumer.suspend or (consumer.replicas == 0 and consumer.scaling is None):
            why = "suspend is true" if consumer.suspend else "replicas is 0"
            self._notes.append(f"Consumer {key} does not run: {why}")
            return None
        try:
            queue, broker = self._follow(consumer)
            if queue.id not in queues:
                return None  # what is wrong with the Queue has been told
            code = compiler.Code(
                self._source(consumer, "spec.handler", consumer.handler.source, consumer.handler.source_from),
                {
                    library.name: self._source(
                        consumer, f"spec.handler.libraries[{at}]", library.source, library.source_from
                    )
                    for at, library in enumerate(consumer.handler.libraries)
                },
            )
            others = [one for one in queues.values() if one.broker_ref == queue.broker_ref]
            entries = compiler.entries_document(consumer, queue, broker, code, cluster=CLUSTER, others=others)
            document = parse(entries, environ=dict(self._environ) | self._env(consumer))
        except NotReady as outcome:
            self._problem(names.CONSUMER, key, f"{outcome.reason}: {outcome.message}")
        except SpecError as error:
            self._problem(names.CONSUMER, key, str(error))
        except EntriesError as error:
            for text in error.errors:
                self._problem(names.CONSUMER, key, text)
        else:
            self._problems.extend(_load_errors(document, self._label(names.CONSUMER, key)))
            return document
        return None

    def _follow(self, consumer: Consumer) -> tuple[Queue, Broker]:
        ref = consumer.queue_ref
        queue = self._parsed.get((names.QUEUE, Key(ref.namespace, ref.name)))
        if queue is None:
            raise SpecError("spec.queueRef", f"there is no Queue {ref.name} in namespace {ref.namespace}")
        broker = resolve.broker_for(self._store, queue)
        if not resolve.admits(broker, consumer.namespace, self._store):
            raise SpecError(
                "spec.queueRef", f"its Broker {broker.name} does not admit namespace {consumer.namespace}"
            )
        return queue, broker

    def _source(self, consumer: Consumer, path: str, source: str, source_from: SourceFrom | None) -> str:
        if source_from is None:
            return source
        ref = source_from.config_map_key_ref
        found = self._value("ConfigMap", consumer, ref)
        if found is None:
            raise SpecError(
                f"{path}.sourceFrom.configMapKeyRef",
                f"no ConfigMap {ref.name} with a key {ref.key} is in the given files",
            )
        return found

    def _env(self, consumer: Consumer) -> dict[str, str]:
        """Return the values of `valueFrom` that are in the files; others may be in the environment."""
        values = {}
        for variable in consumer.handler.env:
            if variable.value_from is None:
                continue
            for kind, ref in (
                ("Secret", variable.value_from.secret_key_ref),
                ("ConfigMap", variable.value_from.config_map_key_ref),
            ):
                found = self._value(kind, consumer, ref) if ref else None
                if found is not None:
                    values[variable.name] = found
        return values

    def _value(self, kind: str, consumer: Consumer, ref: KeyRef) -> str | None:
        return self._values.get((kind, Key(consumer.namespace, ref.name)), {}).get(ref.key)

    def _policy(self, consumer: Consumer, rbac: Rbac) -> Policy:
        if self._allow_all:
            return ALLOW_ALL
        policy = rbac.derive(consumer.namespace, consumer.name, consumer.service_account).policy
        ref = consumer.queue_ref
        if not policy.allows(CONSUME, f"{ref.namespace}:{ref.name}"):
            text = conditions.not_authorized(
                namespace=consumer.namespace,
                service_account=consumer.service_account,
                queue_namespace=ref.namespace,
                queue=ref.name,
            )
            self._notes.append(
                f"Consumer {consumer.namespace}/{consumer.name} consumes nothing: {text} "
                "(here: put that Role and RoleBinding into the files, or use --allow-all)"
            )
        return policy

    def _label(self, kind: str, key: Key) -> str:
        return f"{self._where.get((kind, key), '?')}: {kind} {key}"

    def _problem(self, kind: str, key: Key, text: str) -> None:
        self._problems.append(f"{self._label(kind, key)}: {text}")


_BUILD_ORDER = (kinds.ROLES, kinds.ROLE_BINDINGS, kinds.CLUSTER_ROLES, kinds.CLUSTER_ROLE_BINDINGS)


def _load_errors(document: model.Document, where: str) -> list[str]:
    errors = [load_error(consumer.handler) for consumer in document.consumers.values()]
    return [f"{where}: the Lua does not compile: {error}" for error in errors if error is not None]


def _may_consume(policy: Policy | None, consumer: model.Consumer) -> bool:
    return policy is not None and policy.allows(CONSUME, str(consumer.queue))
