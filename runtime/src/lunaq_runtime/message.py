"""Messages as plain data: what brokers deliver and what we publish.

No AMQP library's types cross this line, so that the memory broker and AMQP look alike to the worker.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PERSISTENT = 2
"""The AMQP delivery mode of a message that survives a broker restart."""


@dataclass(slots=True)  # not frozen: that takes three times as long to make
class Properties:
    """The AMQP 0-9-1 basic properties; `None` is "not set". Never changed once made.

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


class Delivery:
    """One message handed to us by a broker, not yet settled.

    `queue` is the broker-side name. `tag` is only meaningful to the subscription that delivered it, and
    `generation` counts that subscription's connections: settling a delivery of an earlier one is a no-op.
    A broker may subclass it to decode the properties only when somebody looks; two deliveries are never
    equal.
    """

    __slots__ = (
        "_exchange",
        "_properties",
        "_routing_key",
        "body",
        "generation",
        "queue",
        "redelivered",
        "tag",
    )

    def __init__(
        self,
        queue: str,
        tag: int,
        body: bytes,
        properties: Properties,
        redelivered: bool = False,  # noqa: FBT001, FBT002 - the fields of a message, in AMQP's order
        exchange: str = "",
        routing_key: str = "",
        generation: int = 0,
    ) -> None:
        self.queue = queue
        self.tag = tag
        self.body = body
        self.redelivered = redelivered
        self.generation = generation
        self._properties = properties
        self._exchange = exchange
        self._routing_key = routing_key

    @property
    def properties(self) -> Properties:
        """All properties; the first look may cost a decoding, so the hot path goes without."""
        return self._properties

    @property
    def exchange(self) -> str:
        """Where it was published to."""
        return self._exchange

    @property
    def routing_key(self) -> str:
        """The routing key it was published with."""
        return self._routing_key

    @property
    def content_type(self) -> str | None:
        """The property of that name, without decoding the others."""
        return self._properties.content_type

    @property
    def bare(self) -> bool:
        """Whether the message certainly has no headers, told without decoding anything."""
        return not self._properties.headers

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(queue={self.queue!r}, tag={self.tag}, body={len(self.body)} bytes, "
            f"redelivered={self.redelivered}, generation={self.generation})"
        )


class Outgoing:
    """One message to publish; always `mandatory` and confirmed. Never changed once made."""

    __slots__ = ("_properties", "body", "exchange", "routing_key")

    def __init__(self, exchange: str, routing_key: str, body: bytes, properties: Properties) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        self.body = body
        self._properties = properties

    @property
    def properties(self) -> Properties:
        """All properties."""
        return self._properties

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Outgoing):
            return NotImplemented
        return self._key() == other._key()

    __hash__ = None  # type: ignore[assignment]

    def _key(self) -> tuple[str, str, bytes, Properties]:
        return self.exchange, self.routing_key, self.body, self.properties

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self._key()!r}"


class Stamped(Outgoing):
    """A persistent message with a content type, an id (ASCII) and a time (Unix seconds), and nothing else.

    So are most that handlers publish. Who sends it need not make its `properties`: `brokers.wire.stamp`.
    """

    __slots__ = ("content_type", "message_id", "timestamp")

    def __init__(  # the superclass's fields without its constructor
        self, exchange: str, body: bytes, content_type: str, message_id: bytes, timestamp: int
    ) -> None:
        self.exchange = exchange
        self.routing_key = ""
        self.body = body
        self.content_type = content_type
        self.message_id = message_id
        self.timestamp = timestamp

    @property
    def properties(self) -> Properties:
        return Properties(
            self.content_type,
            delivery_mode=PERSISTENT,
            message_id=self.message_id.decode(),
            timestamp=self.timestamp,
        )
