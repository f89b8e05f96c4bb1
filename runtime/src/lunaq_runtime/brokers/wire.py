"""What fits into an AMQP message, and its properties as bytes; both brokers refuse the same things.

The encoder is our own: it is quicker than pamqp's, which also writes floats with 32 bits and cuts header
names at 128 bytes, and either would change a message silently.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any

from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.message import PERSISTENT

if TYPE_CHECKING:
    from collections.abc import Callable

    from lunaq_runtime.message import Properties, Stamped

SHORT_STRING = 255
"""The most bytes of a name, a routing key or a textual property."""

_INT32 = 1 << 31
_INT64 = 1 << 63
_LAST_TIMESTAMP = 253_402_300_799  # the end of the year 9999, where datetime ends
_BYTES = [bytes((number,)) for number in range(256)]
_MODES = {mode: bytes((mode,)) for mode in (1, 2)}
_COMMON = {
    text: bytes((len(text),)) + text.encode()
    for text in ("application/json", "application/msgpack", "application/octet-stream")
}
"""Content types as they are encoded: those that our own codecs write."""
_stamps: dict[str, bytes] = {}
_FLAGS = Struct(">H").pack
_TIMESTAMP = Struct(">Q").pack
_LENGTH = Struct(">I").pack
_INTEGER = Struct(">ci").pack
_LONG = Struct(">cq").pack
_DOUBLE = Struct(">cd").pack


def check(properties: Properties) -> None:
    """Raise BrokerError `encode_failed`, naming the property that does not fit AMQP."""
    encode_properties(properties)


def check_names(exchange: str, routing_key: str) -> None:
    """Raise BrokerError `encode_failed` where a name is too long to be sent."""
    short_text("the exchange", exchange)
    short_text("the routing key", routing_key)


def encode_properties(properties: Properties) -> bytes:  # noqa: C901, PLR0912 - one branch for each property
    """Encode as in a header frame: flags, then the values of what is set; an empty text counts as not set.

    BrokerError `encode_failed` names the property that does not fit AMQP. `user_id` is left out: RabbitMQ
    closes the channel over one that is not the connection's own user, as it is with every message of
    somebody else that we publish again.
    """
    flags = 0
    parts = [b""]
    if value := properties.content_type:
        flags = 0x8000
        parts.append(_COMMON.get(value) or short_text("content_type", value))
    if value := properties.content_encoding:
        flags |= 0x4000
        parts.append(short_text("content_encoding", value))
    if properties.headers:
        flags |= 0x2000
        parts.append(_headers(properties.headers))
    if (mode := properties.delivery_mode) is not None:
        flags |= 0x1000
        parts.append(_MODES.get(mode) or _BYTES[_within("delivery_mode", mode, 1, 2)])
    if (priority := properties.priority) is not None:
        flags |= 0x0800
        parts.append(_BYTES[_within("priority", priority, 0, 255)])
    if value := properties.correlation_id:
        flags |= 0x0400
        parts.append(short_text("correlation_id", value))
    if value := properties.reply_to:
        flags |= 0x0200
        parts.append(short_text("reply_to", value))
    if (expiration := properties.expiration) is not None:
        flags |= 0x0100
        parts.append(short_text("expiration", _milliseconds(expiration)))
    if value := properties.message_id:
        flags |= 0x0080
        parts.append(short_text("message_id", value))
    if (timestamp := properties.timestamp) is not None:
        flags |= 0x0040
        if not 0 <= timestamp <= _LAST_TIMESTAMP:
            raise BrokerError("encode_failed", f"timestamp must be from 0 to {_LAST_TIMESTAMP}")
        parts.append(_TIMESTAMP(timestamp))
    if value := properties.type:
        flags |= 0x0020
        parts.append(short_text("type", value))
    if value := properties.app_id:
        flags |= 0x0008
        parts.append(short_text("app_id", value))
    parts[0] = _FLAGS(flags)
    return b"".join(parts)


def stamp(message: Stamped) -> bytes:
    """Encode the properties of a message that has no others: what `encode_properties` makes of them."""
    message_id = message.message_id
    start = _stamps.get(message.content_type) or _new_stamp(message.content_type)
    return start + _BYTES[len(message_id)] + message_id + _TIMESTAMP(message.timestamp)


def _new_stamp(content_type: str) -> bytes:
    """Encode what is the same for all of a content type; there are as many as codecs."""
    flags = 0x8000 | 0x1000 | 0x0080 | 0x0040
    start = _stamps[content_type] = (
        _FLAGS(flags) + short_text("content_type", content_type) + _MODES[PERSISTENT]
    )
    return start


def short_text(name: str, value: str) -> bytes:
    """Encode a short string; BrokerError `encode_failed` says of `name` why it does not fit."""
    try:
        raw = value.encode()
    except UnicodeEncodeError as error:
        raise BrokerError("encode_failed", f"{name} must be text that UTF-8 can encode") from error
    length = len(raw)
    if length > SHORT_STRING:
        raise BrokerError("encode_failed", f"{name} must be at most {SHORT_STRING} bytes long")
    return _BYTES[length] + raw


def _within(name: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise BrokerError("encode_failed", f"{name} must be from {least} to {most}")
    return value


def _milliseconds(expiration: str) -> str:
    if not (expiration.isascii() and expiration.isdigit()):
        raise BrokerError("encode_failed", "expiration must be a whole number of milliseconds, as text")
    return expiration


def _headers(headers: dict[str, Any]) -> bytes:
    try:
        return encode_table(headers)
    except (ValueError, TypeError, RecursionError) as error:
        raise BrokerError("encode_failed", f"the headers do not fit AMQP: {error}") from error


def encode_table(table: dict[str, Any]) -> bytes:
    """Encode headers as an AMQP field table: 64-bit floats, whole names."""
    parts: list[bytes] = []
    for key, value in table.items():
        raw = key.encode()
        if len(raw) > SHORT_STRING:
            raise ValueError(f"the header name {key[:40]!r}... is longer than {SHORT_STRING} bytes")
        parts += (_BYTES[len(raw)], raw, _value(key, value))
    body = b"".join(parts)
    return _LENGTH(len(body)) + body


def _value(key: str, value: Any) -> bytes:
    encode = _ENCODERS.get(type(value)) or _of_subclass(value)
    if encode is None:
        raise TypeError(f"header {key!r} holds a {type(value).__name__}")
    return encode(key, value)


def _of_subclass(value: Any) -> Callable[[str, Any], bytes] | None:
    for kind, encode in _ENCODERS.items():
        if isinstance(value, kind):
            return encode
    return None


def _nothing(_key: str, _value: None) -> bytes:
    return b"V"


def _boolean(_key: str, value: bool) -> bytes:  # noqa: FBT001 - one signature for all encoders
    return b"t\x01" if value else b"t\x00"


def _integer(key: str, value: int) -> bytes:
    if -_INT32 <= value < _INT32:
        return _INTEGER(b"I", value)
    if -_INT64 <= value < _INT64:
        return _LONG(b"l", value)
    raise ValueError(f"header {key!r} needs more than 64 bits")


def _float(_key: str, value: float) -> bytes:
    return _DOUBLE(b"d", value)


def _text(_key: str, value: str) -> bytes:
    raw = value.encode()
    return b"S" + _LENGTH(len(raw)) + raw


def _raw(_key: str, value: bytes | bytearray) -> bytes:
    return b"x" + _LENGTH(len(value)) + value


def _array(key: str, value: list[Any] | tuple[Any, ...]) -> bytes:
    items = b"".join([_value(key, item) for item in value])
    return b"A" + _LENGTH(len(items)) + items


def _table(_key: str, value: dict[str, Any]) -> bytes:
    return b"F" + encode_table(value)


_ENCODERS: dict[type, Callable[[str, Any], bytes]] = {
    type(None): _nothing,
    bool: _boolean,  # before `int`, which it is a subclass of
    int: _integer,
    float: _float,
    str: _text,
    bytes: _raw,
    bytearray: _raw,
    list: _array,
    tuple: _array,
    dict: _table,
}
