"""What one Queue is on the broker: exchanges, queues and bindings, as plain data (design.md section 4).

Declared by one pure description and one applier (`brokers`), shared by the operator, the local mode and
the conformance suite.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lunaq_runtime import ids

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lunaq_runtime.entries.model import Queue

DEAD_KEY = "dead"
"""The routing key that takes a message from a retry exchange to the dead letter queue."""

OWNER_ARGUMENT = "x-lunaq-owner"
"""The exchange argument that tells, in the management API, who declared it."""

DELIVERY_LIMIT = 100
"""Returns after which the broker itself dead-letters.

High, because a connection loss counts for innocent messages as well: the runtime decides before that.
"""

DEAD_QUEUE_DELIVERY_LIMIT = 1_000_000_000
"""Stands for "none" on dead letter queues.

They have nowhere to dead-letter to, so the default of RabbitMQ 4 (20) would destroy a message at the 21st
look at it, and -1, its word for none, means "at the first return" to 3.10.
"""


@dataclass(frozen=True, slots=True)
class ExchangeDecl:
    """A durable exchange; `type` is `fanout` or `direct`."""

    name: str
    type: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QueueDecl:
    """A queue with its `x-` arguments; `internal`: its type is ours to choose, as no Queue names it."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    durable: bool = True
    auto_delete: bool = False
    internal: bool = False


@dataclass(frozen=True, slots=True)
class Binding:
    """`queue` receives what `exchange` gets with `routing_key`."""

    exchange: str
    queue: str
    routing_key: str = ""


@dataclass(frozen=True, slots=True)
class Topology:
    """All objects of one Queue, in the order in which they must be declared."""

    exchanges: tuple[ExchangeDecl, ...] = ()
    queues: tuple[QueueDecl, ...] = ()
    bindings: tuple[Binding, ...] = ()


def topology_of(queue: Queue) -> Topology:
    """Describe everything `queue` needs on the broker; nothing for an observed queue.

    A named dead letter queue is only bound: it is another Queue's to declare, so declare both (`combine`).
    """
    if queue.observe:
        return Topology()
    name = queue.queue_name
    publish, retry = ids.exchange_name(name), ids.retry_exchange_name(name)
    dead = dead_letter_name(queue)
    delays = retry_delays(queue)
    owner = {OWNER_ARGUMENT: queue.owner} if queue.owner else {}
    main = QueueDecl(name, _main_arguments(queue, dead), queue.durable, queue.auto_delete)
    waiting = tuple(
        QueueDecl(ids.retry_queue_name(name, ms), _retry_arguments(name, ms), internal=True) for ms in delays
    )
    own_dead = () if queue.dead_letter else (QueueDecl(dead, _dead_arguments(), internal=True),)
    return Topology(
        exchanges=(ExchangeDecl(publish, "fanout", owner), ExchangeDecl(retry, "direct", owner)),
        queues=(*own_dead, main, *waiting),
        bindings=(
            Binding(retry, dead, DEAD_KEY),
            *(Binding(retry, ids.retry_queue_name(name, ms), delay_key(ms)) for ms in delays),
            # Last, so that whoever can publish finds the whole way of a failure in place.
            Binding(publish, name),
        ),
    )


def combine(topologies: Iterable[Topology]) -> Topology:
    """Put several topologies into one: bindings come last, so Queues may name each other as dead letters."""
    parts = tuple(topologies)
    return Topology(
        exchanges=tuple(exchange for part in parts for exchange in part.exchanges),
        queues=tuple(queue for part in parts for queue in part.queues),
        bindings=tuple(binding for part in parts for binding in part.bindings),
    )


def dead_letter_name(queue: Queue) -> str:
    """Name the broker-side queue that takes the dead letters of `queue`."""
    if queue.dead_letter:
        return queue.dead_letter_queue_name or str(queue.dead_letter)
    return ids.dead_queue_name(queue.queue_name)


def retry_delays(queue: Queue) -> tuple[int, ...]:
    """List the distinct delays of `queue` in milliseconds, shortest first; each is a queue."""
    return tuple(sorted(set(queue.retry.delays_ms)))


def delay_key(delay_ms: int) -> str:
    """Name the retry exchange's routing key that brings a message back after `delay_ms` milliseconds."""
    return str(delay_ms)


def deletion_order(topology: Topology) -> tuple[tuple[str, str], ...]:
    """List what to delete as `("exchange" | "queue", name)`.

    Exchanges go first, so that a publisher is told "not found" instead of losing a confirmed message.
    """
    exchanges = (("exchange", exchange.name) for exchange in topology.exchanges)
    return (*exchanges, *(("queue", queue.name) for queue in topology.queues))


def _main_arguments(queue: Queue, dead: str) -> dict[str, Any]:
    # RabbitMQ has no transient or auto-deleted quorum queues, so those are classic whatever `type` says.
    quorum = queue.type == "quorum" and queue.durable and not queue.auto_delete
    arguments: dict[str, Any] = {
        "x-queue-type": "quorum" if quorum else "classic",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": dead,
    }
    if quorum:
        arguments |= _at_least_once() | {"x-delivery-limit": DELIVERY_LIMIT}
    elif queue.max_length is not None or queue.max_length_bytes is not None:
        arguments["x-overflow"] = "reject-publish"
    limits = {
        "x-message-ttl": queue.message_ttl_ms,
        "x-expires": queue.queue_expiry_ms,
        "x-max-length": queue.max_length,
        "x-max-length-bytes": queue.max_length_bytes,
        "x-max-priority": None if quorum else queue.max_priority,
        "x-single-active-consumer": queue.single_active_consumer or None,
    }
    return arguments | {key: value for key, value in limits.items() if value is not None}


def _retry_arguments(queue_name: str, delay_ms: int) -> dict[str, Any]:
    return {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue_name,
        **_at_least_once(),
        "x-message-ttl": delay_ms,
    }


def _dead_arguments() -> dict[str, Any]:
    return {"x-queue-type": "quorum", "x-delivery-limit": DEAD_QUEUE_DELIVERY_LIMIT}


def _at_least_once() -> dict[str, Any]:
    # Both are needed: without either, RabbitMQ silently dead-letters at most once (design.md section 4).
    return {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
