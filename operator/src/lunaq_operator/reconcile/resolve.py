"""Follows the references between Consumers, Queues and Brokers, and refuses what must not be followed. Pure.

Every refusal is a `NotReady` with the reason that names the fix. What one namespace may do to another is
decided here and nowhere else (design.md sections 2 and 3, confused deputies).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from lunaq_operator import conditions, kinds
from lunaq_operator.conditions import Reason
from lunaq_operator.reconcile.context import NotReady
from lunaq_operator.references import broker_of, claim_of
from lunaq_operator.resources import SpecError, parse_broker, parse_queue
from lunaq_operator.store import Key, key_of, uid_of
from lunaq_runtime import ids

if TYPE_CHECKING:
    from lunaq_operator.resources import Broker, Queue
    from lunaq_operator.store import Obj, Store
    from lunaq_runtime.brokers.base import BrokerError

_DERIVED = re.compile(r"(?P<base>.+)\.(x|dead|retry|retry\.\d+)\Z")

_BROKER_REASONS = {
    "connection": Reason.BROKER_UNREACHABLE,
    "timeout": Reason.BROKER_UNREACHABLE,
    "closed": Reason.BROKER_UNREACHABLE,
    "access_refused": Reason.ACCESS_REFUSED,
    "immutable_arguments": Reason.IMMUTABLE_ARGUMENTS,
    "queue_not_found": Reason.QUEUE_NOT_READY,
}


def queue_of(obj: Obj) -> Queue:
    """Read a Queue; NotReady with InvalidSpec where it cannot be."""
    try:
        return parse_queue(obj)
    except SpecError as error:
        raise NotReady(Reason.INVALID_SPEC, str(error)) from error


def broker_for(store: Store, queue: Queue) -> Broker:
    """Return the Broker of a Queue, if there is one and it admits the Queue."""
    ref = queue.broker_ref
    obj = store[kinds.BROKERS].get(ref.namespace, ref.name)
    if obj is None or obj["metadata"].get("deletionTimestamp"):
        raise NotReady(
            Reason.BROKER_MISSING,
            f"there is no Broker {ref.name} in namespace {ref.namespace}; create it, or name another",
        )
    try:
        broker = parse_broker(obj)
    except SpecError as error:
        raise NotReady(Reason.BROKER_NOT_READY, f"Broker {ref.name}: {error}") from error
    if not admits(broker, queue.namespace, store):
        raise NotReady(
            Reason.NOT_ALLOWED,
            f"Broker {ref.namespace}/{ref.name} does not admit namespace {queue.namespace}; "
            "its spec.allowedNamespaces decides",
            revokes=True,
        )
    if queue.queue_name and queue.namespace != broker.namespace:
        raise NotReady(
            Reason.NOT_ALLOWED,
            f"spec.queueName is allowed only in the Broker's own namespace {broker.namespace}; remove it",
            revokes=True,
        )
    return broker


def admits(broker: Broker, namespace: str, store: Store) -> bool:
    """Tell whether objects of `namespace` may refer to the Broker."""
    allowed = broker.allowed_namespaces
    if namespace == broker.namespace or allowed.from_ == "All":
        return True
    if allowed.from_ != "Selector" or kinds.NAMESPACES not in store:
        return False
    obj = store[kinds.NAMESPACES].get("", namespace)
    return obj is not None and selects(dict(allowed.selector), obj["metadata"].get("labels") or {})


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Apply a label selector as Kubernetes does; an empty one selects everything."""
    exact = selector.get("matchLabels") or {}
    if any(labels.get(key) != value for key, value in exact.items()):
        return False
    return all(_holds(expression, labels) for expression in selector.get("matchExpressions") or ())


def _holds(expression: dict[str, Any], labels: dict[str, str]) -> bool:
    key, values = expression.get("key", ""), expression.get("values") or []
    match expression.get("operator"):
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
    return False


def refuse_conflict(store: Store, obj: Obj, queue: Queue) -> None:
    """Refuse a Queue whose broker-side names an older Queue claims."""
    mine = _age(obj)
    for other in rivals(store, obj, queue):
        if _age(other) < mine:
            owner = key_of(other)
            raise NotReady(
                Reason.CONFLICT,
                f"Queue {owner} is older and claims {claim_of(other)[1]} on the same Broker; "
                f"nothing is declared for this one; delete one of them, or choose another spec.queueName",
                revokes=True,
            )


def rivals(store: Store, obj: Obj, queue: Queue) -> list[Obj]:
    """Return the other Queues on the same Broker whose names on it overlap with this one's."""
    name = queue.broker_side_name
    overlapping = {
        name,
        ids.dead_queue_name(name),
        # Of exchanges, but permissions at the broker go by name alone.
        ids.exchange_name(name),
        ids.retry_exchange_name(name),
        *(ids.retry_queue_name(name, delay) for delay in queue.retry.delays),
    }
    derived = _DERIVED.match(name)
    if derived:
        overlapping.add(derived["base"])
    broker = broker_of(obj)
    found = [other for one in sorted(overlapping) for other in store[kinds.QUEUES].by("claim", (broker, one))]
    # A name of its own, outside the Broker's namespace, is refused anyway and so claims nothing.
    return [
        other
        for other in found
        if uid_of(other) != uid_of(obj)
        and not ((other.get("spec") or {}).get("queueName") and key_of(other).namespace != broker.namespace)
    ]


def dead_letter_of(store: Store, queue: Queue) -> Queue | None:
    """Return the Queue that takes the dead letters, None for an own dead letter queue."""
    if queue.dead_letter is None:
        return None
    name = queue.dead_letter.queue_ref.name
    obj = store[kinds.QUEUES].get(queue.namespace, name)
    if obj is None:
        raise NotReady(
            Reason.QUEUE_MISSING,
            f"spec.deadLetter.queueRef: there is no Queue {name} in namespace {queue.namespace}; create it",
        )
    if broker_of(obj) != Key(queue.broker_ref.namespace, queue.broker_ref.name):
        raise NotReady(
            Reason.INVALID_SPEC,
            f"spec.deadLetter.queueRef: Queue {name} is on another Broker; name one of this",
        )
    return queue_of(obj)


def depends_on_dead_letters(store: Store, obj: Obj) -> list[Key]:
    """Name the Queues, not being deleted themselves, whose dead letters go to this one."""
    users = store[kinds.QUEUES].by("dead_letter", key_of(obj))
    return [key_of(user) for user in users if not user["metadata"].get("deletionTimestamp")]


def is_ready(obj: Obj) -> bool:
    """Tell whether an object's status says `Ready`."""
    ready = conditions.find((obj.get("status") or {}).get("conditions") or [], conditions.READY)
    return ready is not None and ready.get("status") == conditions.TRUE


def refusal(error: BrokerError, again: float) -> NotReady:
    """Translate what a broker said into a condition; to be looked at again after so many seconds."""
    return NotReady(_BROKER_REASONS.get(error.reason, Reason.INVALID_SPEC), str(error), again)


def _age(obj: Obj) -> tuple[str, str]:
    return str(obj["metadata"].get("creationTimestamp") or ""), uid_of(obj)
