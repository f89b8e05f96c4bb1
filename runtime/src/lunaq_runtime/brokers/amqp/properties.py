"""Our Properties to AMQP's and back; publishing and consuming call it for every message."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from pamqp import commands

from lunaq_runtime.brokers.wire import check, encode_table
from lunaq_runtime.message import Properties

_PLAIN = (
    "content_type",
    "content_encoding",
    "delivery_mode",
    "priority",
    "correlation_id",
    "reply_to",
    "expiration",
    "message_id",
    "app_id",
)


class ExactProperties(commands.Basic.Properties):  # type: ignore[misc, unused-ignore]
    """AMQP properties that encode headers without loss; `marshal` calls `encode_property` for each."""

    def encode_property(self, name: str, value: Any) -> bytes:
        """Encode one property, headers by `encode_table`."""
        if name == "headers":
            return encode_table(value)
        encoded: bytes = super().encode_property(name, value)
        return encoded


def to_amqp(properties: Properties) -> ExactProperties:
    """Build what is published; BrokerError `encode_failed` names the property that does not fit AMQP.

    `user_id` is left out: RabbitMQ closes the channel over one that is not the connection's own user, as
    it is with every message of somebody else that we publish again.
    """
    check(properties)
    timestamp = None if properties.timestamp is None else datetime.fromtimestamp(properties.timestamp, UTC)
    return ExactProperties(
        **{name: getattr(properties, name) for name in _PLAIN},
        timestamp=timestamp,
        message_type=properties.type,
        headers=properties.headers or None,
    )


def from_amqp(raw: commands.Basic.Properties) -> Properties:
    """Read what was delivered."""
    return Properties(
        **{name: getattr(raw, name) for name in _PLAIN},
        headers=plain(raw.headers) if raw.headers else {},
        timestamp=int(raw.timestamp.timestamp()) if raw.timestamp else None,
        type=raw.message_type,
        user_id=raw.user_id,
    )


def plain(value: Any) -> Any:
    """Turn a decoded header into the types `message.Properties` promises."""
    match value:
        case dict():
            return {key: plain(item) for key, item in value.items()}
        case list():
            return [plain(item) for item in value]
        case bytearray():
            return bytes(value)
        case datetime():
            return int(value.timestamp())
        case Decimal():
            return float(value)
        case _:
            return value
