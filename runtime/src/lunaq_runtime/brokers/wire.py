"""What fits into an AMQP message, and its headers as bytes; both brokers refuse the same things.

The encoder is our own because pamqp writes floats with 32 bits and cuts header names at 128 bytes, and
either would change a message silently.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from lunaq_runtime.brokers.base import BrokerError

if TYPE_CHECKING:
    from lunaq_runtime.message import Properties

SHORT_STRING = 255
"""The most bytes of a name, a routing key or a textual property."""

_INT32 = 1 << 31
_INT64 = 1 << 63
_LAST_TIMESTAMP = 253_402_300_799  # the end of the year 9999, where datetime ends
_TEXTS = (
    "content_type",
    "content_encoding",
    "correlation_id",
    "reply_to",
    "expiration",
    "message_id",
    "type",
    "app_id",
)


def check(properties: Properties) -> None:
    """Raise BrokerError `encode_failed`, naming the property that does not fit AMQP."""
    for name in _TEXTS:
        value = getattr(properties, name)
        if value is not None and _size(name, value) > SHORT_STRING:
            raise BrokerError("encode_failed", f"{name} must be at most {SHORT_STRING} bytes long")
    expiration = properties.expiration
    if expiration is not None and not (expiration.isascii() and expiration.isdigit()):
        raise BrokerError("encode_failed", "expiration must be a whole number of milliseconds, as text")
    ranges = {
        "priority": (properties.priority, 0, 255),
        "delivery_mode": (properties.delivery_mode, 1, 2),
        "timestamp": (properties.timestamp, 0, _LAST_TIMESTAMP),
    }
    for name, (value, least, most) in ranges.items():
        if value is not None and not least <= value <= most:
            raise BrokerError("encode_failed", f"{name} must be from {least} to {most}")
    try:
        encode_table(properties.headers)
    except (ValueError, TypeError, RecursionError) as error:
        raise BrokerError("encode_failed", f"the headers do not fit AMQP: {error}") from error


def check_names(exchange: str, routing_key: str) -> None:
    """Raise BrokerError `encode_failed` where a name is too long to be sent."""
    for name, value in (("exchange", exchange), ("routing key", routing_key)):
        if _size(name, value) > SHORT_STRING:
            raise BrokerError("encode_failed", f"the {name} must be at most {SHORT_STRING} bytes long")


def _size(name: str, value: str) -> int:
    try:
        return len(value.encode())
    except UnicodeEncodeError as error:
        raise BrokerError("encode_failed", f"{name} must be text that UTF-8 can encode") from error


def encode_table(table: dict[str, Any]) -> bytes:
    """Encode headers as an AMQP field table: 64-bit floats, whole names."""
    body = b"".join(_name(key) + _value(key, item) for key, item in table.items())
    return struct.pack(">I", len(body)) + body


def _name(key: str) -> bytes:
    raw = key.encode()
    if len(raw) > SHORT_STRING:
        raise ValueError(f"the header name {key[:40]!r}... is longer than {SHORT_STRING} bytes")
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
