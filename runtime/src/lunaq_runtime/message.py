"""Messages as plain data: what brokers deliver and what we publish.

No AMQP library's types cross this line, so that the memory broker and AMQP look alike to the worker.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PERSISTENT = 2
"""The AMQP delivery mode of a message that survives a broker restart."""


@dataclass(frozen=True, slots=True)
class Properties:
    """The AMQP 0-9-1 basic properties; `None` is "not set".

    `timestamp` is in Unix seconds; `expiration` is the decimal text of milliseconds. Header values are
    `None`, `bool`, `int`, `float`, `str`, `bytes`, `list` or `dict` of these.
    """

    content_type: str | None = None
    content_encoding: str | None = None
    headers: dict[str, Any] = field(default_factory=dict)
    delivery_mode: int | None = None
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: int | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None


@dataclass(slots=True, eq=False)
class Delivery:
    """One message handed to us by a broker, not yet settled.

    `queue` is the broker-side name. `tag` is only meaningful to the subscription that delivered it, and
    `generation` counts that subscription's connections: settling a delivery of an earlier one is a no-op.
    """

    queue: str
    tag: int
    body: bytes
    properties: Properties
    redelivered: bool = False
    exchange: str = ""
    routing_key: str = ""
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message to publish; always `mandatory` and confirmed."""

    exchange: str
    routing_key: str
    body: bytes
    properties: Properties
