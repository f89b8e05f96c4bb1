"""Topology in Apache Qpid Broker-J's words, pure; `declare` asks when that is the broker.

Broker-J knows none of RabbitMQ's `x-` arguments and closes the connection over each. What it has instead:
an alternate binding takes what expires, and the move is one transaction of its store, so a retry that waits
is never at most once. Called with what `lunaq_runtime.topology` describes, or a test's own.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lunaq_runtime.brokers.base import BrokerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lunaq_runtime.message import Properties
    from lunaq_runtime.topology import QueueDecl, Topology

_RENAMED = {
    "x-message-ttl": "maximumMessageTtl",
    "x-single-active-consumer": "x-single-active-consumer",
}
_NAME = "Apache Qpid Broker-J"


def translated(topology: Topology) -> Topology:
    """Say the same to Broker-J; BrokerError `unsupported` names what it cannot do and what to change."""
    return replace(
        topology,
        exchanges=tuple(replace(exchange, arguments={}) for exchange in topology.exchanges),
        queues=tuple(replace(one, arguments=_arguments(one)) for one in _targets_first(topology.queues)),
    )


def refuse_delete(name: str) -> BrokerError:
    """Say why nothing is deleted: 9.2.1 ends, with all it serves, over one that another dead-letters to."""
    text = f"'{name}' is not deleted: {_NAME} may end over it; delete it by its management, or retain it"
    return BrokerError("unsupported", text)


def refuse_expiration(properties: Properties) -> None:
    """Raise BrokerError for an `expiration`: Broker-J takes it for a date, in milliseconds since 1970."""
    if properties.expiration is not None:
        text = f"{_NAME} takes a message's expiration for a date long past: publish without one"
        raise BrokerError("unsupported", text)


def without_empty_tables(properties: Properties) -> Properties:
    """Write no value for each empty table: Broker-J confirms such messages and drops 1 in 50 (9.2.1)."""
    return replace(properties, headers=_filled(properties.headers) or {})


def _filled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item) for key, item in value.items()} or None
    return [_filled(item) for item in value] if isinstance(value, list) else value


def _arguments(queue: QueueDecl) -> dict[str, Any]:
    wanted = dict(queue.arguments)
    if wanted.pop("x-queue-type", "classic") == "quorum" and not queue.internal:
        raise _refusal(queue, "has no quorum queues: set type: Classic")
    # Broker-J's limit is for consumers that die, and does not count what is handed back.
    wanted.pop("x-delivery-limit", None)
    wanted.pop("x-dead-letter-strategy", None)
    arguments: dict[str, Any] = {
        renamed: wanted.pop(name) for name, renamed in _RENAMED.items() if name in wanted
    }
    if (most := wanted.pop("x-max-priority", None)) is not None:
        arguments["priorities"] = most + 1
    wanted.pop("x-overflow", None)
    if wanted.keys() & {"x-max-length", "x-max-length-bytes"}:
        raise _refusal(
            queue, "loses a retry that comes back to a full queue: leave maxLength and maxLengthBytes out"
        )
    exchange, key = wanted.pop("x-dead-letter-exchange", None), wanted.pop("x-dead-letter-routing-key", None)
    if exchange is not None:
        if exchange or not key:
            raise _refusal(queue, "dead-letters only to a queue, through the default exchange")
        arguments["alternateBinding"] = json.dumps({"destination": key})
        arguments["expiryPolicy"] = "ROUTE_TO_ALTERNATE"
    if wanted:
        raise _refusal(queue, f"takes no argument {', '.join(sorted(wanted))}")
    return arguments


def _targets_first(queues: Sequence[QueueDecl]) -> list[QueueDecl]:
    """Order queues so that each comes after the one it dead-letters to: Broker-J knows no later ones."""
    ordered: list[QueueDecl] = []
    left = list(queues)
    while left:
        names = {queue.name for queue in left}
        free = [queue for queue in left if queue.arguments.get("x-dead-letter-routing-key") not in names]
        if not free:
            raise _refusal(left[0], "takes no queues that dead-letter in a circle: break it")
        ordered += free
        left = [queue for queue in left if queue not in free]
    return ordered


def _refusal(queue: QueueDecl, text: str) -> BrokerError:
    return BrokerError("unsupported", f"cannot declare queue '{queue.name}': {_NAME} {text}")
