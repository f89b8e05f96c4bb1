"""Bytes of a message's head to our plain types; `delivery` calls it when somebody looks.

Nothing a publisher wrote may raise here, for the message would stall its consumer at each redelivery: text
that is not UTF-8 is patched, a time beyond the calendar is none, and a header table that cannot be decoded
becomes one header with its bytes.
"""

from __future__ import annotations

from decimal import Decimal
from struct import Struct, error
from typing import TYPE_CHECKING, Any

from lunaq_runtime.message import Properties

if TYPE_CHECKING:
    from collections.abc import Callable

UNDECODABLE_HEADERS = "x_undecodable_headers"
"""The header that stands for all others where they cannot be decoded; it holds their bytes."""

_MOST_NESTING = 32
_LAST_TIMESTAMP = 253_402_300_799  # the end of the year 9999
_MILLISECONDS_FROM = 0xFFFFFFFF  # a larger time is in milliseconds, or beyond the year 2106
_LENGTH = Struct(">I").unpack_from
_DECIMAL = Struct(">Bi").unpack_from
_FLAGS = Struct(">H").unpack_from
_TIMESTAMP = Struct(">Q").unpack_from

_Value = tuple[Any, int]


def properties(head: bytes, at: int) -> Properties:
    """Decode the properties whose values begin at `at`; what is cut off in the middle is left out."""
    (flags,) = _FLAGS(head, at - 2)
    fields: dict[str, Any] = {}
    if flags & 1:  # more flags, of which AMQP 0-9-1 has none
        return Properties()
    try:
        for bit, name, read in _PROPERTIES:
            if flags & bit:
                value, at = read(head, at)
                if name and value is not None:
                    fields[name] = value
    except (IndexError, error):
        pass
    return Properties(**fields)


def short_text(data: bytes, at: int) -> tuple[str, int]:
    """Decode a short string; gives where the next thing begins."""
    end = at + 1 + data[at]
    return data[at + 1 : end].decode("utf-8", "replace"), end


def table(data: bytes, at: int) -> tuple[dict[str, Any], int]:
    """Decode a field table at `at`, or keep its bytes as one header."""
    (length,) = _LENGTH(data, at)
    end = at + 4 + length
    try:
        return _table(data, at, _MOST_NESTING)
    except (ValueError, IndexError, KeyError, error):
        return {UNDECODABLE_HEADERS: data[at + 4 : end]}, end


def _table(data: bytes, at: int, levels: int) -> tuple[dict[str, Any], int]:
    at, end = _bounds(data, at, levels)
    decoded: dict[str, Any] = {}
    while at < end:
        start = at + 1
        at = start + data[at]
        key = data[start:at].decode()
        decoded[key], at = _READERS[data[at]](data, at + 1, levels - 1)
    if at != end:
        raise ValueError("a table does not end where it should")
    return decoded, end


def _array(data: bytes, at: int, levels: int) -> tuple[list[Any], int]:
    at, end = _bounds(data, at, levels)
    decoded = []
    while at < end:
        value, at = _READERS[data[at]](data, at + 1, levels - 1)
        decoded.append(value)
    if at != end:
        raise ValueError("an array does not end where it should")
    return decoded, end


def _bounds(data: bytes, at: int, levels: int) -> tuple[int, int]:
    if levels <= 0:
        raise ValueError("too deep")
    (length,) = _LENGTH(data, at)
    end = at + 4 + length
    if end > len(data):
        raise ValueError("longer than the frame")
    return at + 4, end


def _fixed(layout: str) -> Callable[[bytes, int, int], _Value]:
    struct = Struct(">" + layout)
    unpack, size = struct.unpack_from, struct.size

    def read(data: bytes, at: int, _levels: int) -> _Value:
        return unpack(data, at)[0], at + size

    return read


def _raw(data: bytes, at: int, _levels: int = 0) -> tuple[bytes, int]:
    (length,) = _LENGTH(data, at)
    end = at + 4 + length
    if end > len(data):
        raise ValueError("longer than the frame")
    return data[at + 4 : end], end


def _long_text(data: bytes, at: int, _levels: int) -> _Value:
    raw, end = _raw(data, at)
    try:
        return raw.decode(), end
    except UnicodeDecodeError:
        return raw, end


def _decimal(data: bytes, at: int, _levels: int) -> _Value:
    scale, digits = _DECIMAL(data, at)
    return float(Decimal(digits).scaleb(-scale)), at + 5


def _time(data: bytes, at: int, _levels: int = 0) -> _Value:
    (seconds,) = _TIMESTAMP(data, at)
    if seconds > _MILLISECONDS_FROM:
        seconds //= 1000
    return seconds if seconds <= _LAST_TIMESTAMP else None, at + 8


def _nothing(_data: bytes, at: int, _levels: int) -> _Value:
    return None, at


def _octet(data: bytes, at: int) -> _Value:
    return data[at], at + 1


# The types RabbitMQ and the specification's errata know, and a zero byte, which has been seen for "void".
_READERS: dict[int, Callable[[bytes, int, int], _Value]] = {
    ord(code): reader
    for code, reader in {
        "t": _fixed("?"),
        "b": _fixed("b"),
        "B": _fixed("B"),
        "s": _fixed("h"),
        "u": _fixed("H"),
        "I": _fixed("i"),
        "i": _fixed("I"),
        "l": _fixed("q"),
        "L": _fixed("q"),
        "f": _fixed("f"),
        "d": _fixed("d"),
        "D": _decimal,
        "S": _long_text,
        "x": _raw,
        "A": _array,
        "F": _table,
        "T": _time,
        "V": _nothing,
        "\0": _nothing,
    }.items()
}

# In the order of their values in a frame; the last one, cluster_id, is nobody's any more.
_PROPERTIES: tuple[tuple[int, str, Callable[[bytes, int], _Value]], ...] = (
    (0x8000, "content_type", short_text),
    (0x4000, "content_encoding", short_text),
    (0x2000, "headers", table),
    (0x1000, "delivery_mode", _octet),
    (0x0800, "priority", _octet),
    (0x0400, "correlation_id", short_text),
    (0x0200, "reply_to", short_text),
    (0x0100, "expiration", short_text),
    (0x0080, "message_id", short_text),
    (0x0040, "timestamp", _time),
    (0x0020, "type", short_text),
    (0x0010, "user_id", short_text),
    (0x0008, "app_id", short_text),
    (0x0004, "", short_text),
)
