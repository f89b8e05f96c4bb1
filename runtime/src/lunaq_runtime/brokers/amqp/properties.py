"""Our Properties to AMQP's and back, with a header encoder of our own.

pamqp writes floats with 32 bits and cuts header names at 128 bytes; both would change a message silently.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from pamqp import commands

from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.message import Properties

_SHORT_STRING = 255
_INT32 = 1 << 31
_INT64 = 1 << 63
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
    if properties.expiration is not None and not (
        properties.expiration.isascii() and properties.expiration.isdigit()
    ):
        raise BrokerError("encode_failed", "expiration must be a whole number of milliseconds, as text")
    for name in (*_PLAIN, "type"):
        value = getattr(properties, name)
        if isinstance(value, str) and len(value.encode("utf-8", "surrogatepass")) > _SHORT_STRING:
            raise BrokerError("encode_failed", f"{name} must be at most {_SHORT_STRING} bytes long")
    try:
        timestamp = (
            None if properties.timestamp is None else datetime.fromtimestamp(properties.timestamp, UTC)
        )
        result = ExactProperties(
            **{name: getattr(properties, name) for name in _PLAIN},
            timestamp=timestamp,
            message_type=properties.type,
            headers=properties.headers or None,
        )
        # Encode once here, where the error can still be told to the one who made the message.
        result.marshal()
    except (ValueError, TypeError, OverflowError, OSError, struct.error) as error:
        raise BrokerError("encode_failed", f"the properties do not fit AMQP: {error}") from error
    return result


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


def encode_table(table: dict[str, Any]) -> bytes:
    """Encode headers as an AMQP field table: 64-bit floats, whole names."""
    body = b"".join(_name(key) + _value(key, item) for key, item in table.items())
    return struct.pack(">I", len(body)) + body


def _name(key: str) -> bytes:
    raw = key.encode()
    if len(raw) > _SHORT_STRING:
        raise ValueError(f"the header name {key[:40]!r}... is longer than {_SHORT_STRING} bytes")
    return bytes((len(raw),)) + raw


def _value(key: str, value: Any) -> bytes:  # noqa: PLR0911 - one return per AMQP type
    match value:
        case None:
            return b"V"
        case bool():
            return b"t\x01" if value else b"t\x00"
        case int():
            return _integer(key, value)
        case float():
            return b"d" + struct.pack(">d", value)
        case str():
            raw = value.encode()
            return b"S" + struct.pack(">I", len(raw)) + raw
        case bytes() | bytearray():
            return b"x" + struct.pack(">I", len(value)) + bytes(value)
        case list() | tuple():
            items = b"".join(_value(key, item) for item in value)
            return b"A" + struct.pack(">I", len(items)) + items
        case dict():
            return b"F" + encode_table(value)
        case _:
            raise TypeError(f"header {key!r} holds a {type(value).__name__}")


def _integer(key: str, value: int) -> bytes:
    if -_INT32 <= value < _INT32:
        return b"I" + struct.pack(">i", value)
    if -_INT64 <= value < _INT64:
        return b"l" + struct.pack(">q", value)
    raise ValueError(f"header {key!r} needs more than 64 bits")
