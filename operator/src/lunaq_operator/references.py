"""Which Brokers, Queues and Consumers to look at again when an object changed; used by `engine`. Pure.

Level-based: an answer too many costs a look that finds nothing, an answer too few is a bug.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from lunaq_operator import kinds, names
from lunaq_operator.store import Key, key_of

if TYPE_CHECKING:
    from lunaq_operator.kinds import Kind
    from lunaq_operator.store import KindStore, Obj, Store

RBAC = "rbac"
"""The kind of the one work item that derives all policies anew."""


class Work(NamedTuple):
    """What the work queue is keyed by: a kind's plural (or `RBAC`) and an object's key."""

    kind: str
    key: Key

    def __str__(self) -> str:
        return f"{self.kind} {self.key}"


DERIVE_POLICIES = Work(RBAC, Key("", ""))


def add_indexes(store: Store) -> None:
    """Have the store keep the reverse maps that `affected` and the reconcilers need."""
    store[kinds.QUEUES].add_index("broker", lambda queue: [broker_of(queue)])
    store[kinds.QUEUES].add_index("claim", lambda queue: [claim_of(queue)])
    store[kinds.QUEUES].add_index("dead_letter", _dead_letters_of)
    store[kinds.QUEUES].add_index("told", lambda queue: [broker_of(queue)] if needs_telling(queue) else [])
    store[kinds.QUEUES].add_index("namespace", _namespace_of)
    store[kinds.CONSUMERS].add_index("queue", lambda consumer: [queue_of(consumer)])
    store[kinds.CONSUMERS].add_index("namespace", _namespace_of)
    for kind in kinds.OWNED:
        store[kind].add_index("consumer", consumers_of)


def affected(kind: Kind, obj: Obj, store: Store) -> list[Work]:
    """Return what to look at again after `obj` was added, changed or deleted."""
    if kind in kinds.RBAC:
        return [DERIVE_POLICIES]
    if kind in kinds.OWNED:
        return [_consumer(key) for key in consumers_of(obj)]
    if kind is kinds.NAMESPACES:
        namespace = obj["metadata"]["name"]
        queues = store[kinds.QUEUES].by("namespace", namespace)
        consumers = store[kinds.CONSUMERS].by("namespace", namespace)
        return [*map(_queue_work, queues), *(_consumer(key_of(consumer)) for consumer in consumers)]
    if kind is kinds.BROKERS:
        queues = store[kinds.QUEUES].by("broker", key_of(obj))
        return [Work(kind.plural, key_of(obj)), *_queues_and_consumers(queues, store)]
    if kind is kinds.QUEUES:
        others = [
            *store[kind].by("claim", claim_of(obj)),
            *store[kind].by("dead_letter", key_of(obj)),
        ]
        found = [*_queues_and_consumers([obj], store), *map(_queue_work, others)]
        if needs_telling(obj):
            # Every Consumer of the Broker may publish to it, and has it in its entries.
            for queue in store[kind].by("broker", broker_of(obj)):
                found += map(_consumer_work, store[kinds.CONSUMERS].by("queue", key_of(queue)))
        return found
    return [Work(kind.plural, key_of(obj))]


def broker_of(queue: Obj) -> Key:
    """Return the key of the Broker that a Queue object refers to."""
    return _reference(queue, "brokerRef")


def queue_of(consumer: Obj) -> Key:
    """Return the key of the Queue that a Consumer object refers to."""
    return _reference(consumer, "queueRef")


def claim_of(queue: Obj) -> tuple[Key, str]:
    """Return what only one Queue may own: a name on a broker."""
    name = (queue.get("spec") or {}).get("queueName")
    namespace, own = key_of(queue)
    return broker_of(queue), str(name or f"{namespace}:{own}")


def needs_telling(queue: Obj) -> bool:
    """Tell whether a publisher must know more of a Queue than its ID (see `compile.entries_document`)."""
    spec = queue.get("spec") or {}
    own_codec = (spec.get("codec") or "json") != "json"
    return bool(spec.get("queueName")) or own_codec or spec.get("managementPolicy") == "Observe"


def consumers_of(owned: Obj) -> list[Key]:
    """Return the Consumers that own an object, by its owner references and by its label."""
    metadata = owned["metadata"]
    namespace = metadata.get("namespace") or ""
    owners = {
        str(owner.get("name"))
        for owner in metadata.get("ownerReferences") or ()
        if owner.get("kind") == names.CONSUMER and owner.get("apiVersion") == names.API_VERSION
    }
    label = (metadata.get("labels") or {}).get(names.LABEL_CONSUMER)
    return [Key(namespace, name) for name in sorted(owners | ({label} if label else set()))]


def service_account_of(consumer: Obj) -> str:
    """Return the name of the ServiceAccount that a Consumer object's rights go by."""
    name = (consumer.get("spec") or {}).get("serviceAccountName")
    return str(name or names.service_account_name(consumer["metadata"]["name"]))


def _reference(obj: Obj, field: str) -> Key:
    ref: dict[str, Any] = (obj.get("spec") or {}).get(field) or {}
    return Key(
        str(ref.get("namespace") or obj["metadata"].get("namespace") or ""), str(ref.get("name") or "")
    )


def _dead_letters_of(queue: Obj) -> list[Key]:
    dead: dict[str, Any] = (queue.get("spec") or {}).get("deadLetter") or {}
    name = (dead.get("queueRef") or {}).get("name")
    return [Key(queue["metadata"].get("namespace") or "", str(name))] if name else []


def _namespace_of(obj: Obj) -> list[str]:
    return [obj["metadata"].get("namespace") or ""]


def _queues_and_consumers(queues: list[Obj], store: Store) -> list[Work]:
    consumers: KindStore = store[kinds.CONSUMERS]
    return [
        work
        for queue in queues
        for work in (_queue_work(queue), *map(_consumer_work, consumers.by("queue", key_of(queue))))
    ]


def _queue_work(queue: Obj) -> Work:
    return Work(kinds.QUEUES.plural, key_of(queue))


def _consumer_work(consumer: Obj) -> Work:
    return _consumer(key_of(consumer))


def _consumer(key: Key) -> Work:
    return Work(kinds.CONSUMERS.plural, key)
