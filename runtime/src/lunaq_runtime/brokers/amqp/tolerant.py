"""Keeps a malformed foreign message from taking the connection down, again at each redelivery.

pamqp raises where a text property is not UTF-8, a timestamp lies beyond the calendar or a table is broken
or endlessly nested, and aiormq then gives up the connection: one such message would stop every consumer
on it for good. pamqp looks its decoders up in the public tables `METHODS` and `TABLE_MAPPING`; `install`
puts forgiving ones there. Called by `link`, once.
"""

from __future__ import annotations

import struct
from typing import Any

from pamqp import decode

UNDECODABLE_HEADERS = "x_undecodable_headers"
"""The header that stands for all others where they cannot be decoded; it holds their bytes."""

_MOST_NESTING = 32
_LENGTH = struct.Struct(">I")


def install() -> None:
    """Replace pamqp's decoders of what a publisher may have got wrong; repeating it changes nothing."""
    decode.METHODS["shortstr"] = short_string
    decode.METHODS["timestamp"] = timestamp
    decode.METHODS["table"] = table
    decode.TABLE_MAPPING[b"T"] = timestamp


def short_string(value: bytes) -> tuple[int, str]:
    """Decode a short string, what is not UTF-8 in it replaced."""
    end = value[0] + 1
    return end, value[1:end].decode("utf-8", "replace")


def timestamp(value: bytes) -> tuple[int, Any]:
    """Decode a timestamp; one beyond the calendar is none."""
    try:
        return decode.timestamp(value)
    except (ValueError, OverflowError, OSError):
        return 8, None


def table(value: bytes) -> tuple[int, dict[str, Any]]:
    """Decode a table; an undecodable one becomes a single header with its bytes."""
    try:
        end, decoded = decode.field_table(value)
        if _fits(decoded, _MOST_NESTING):
            return end, decoded
    except (ValueError, OverflowError, RecursionError):
        pass
    (length,) = _LENGTH.unpack_from(value)
    end = _LENGTH.size + length
    return end, {UNDECODABLE_HEADERS: bytes(value[_LENGTH.size : end])}


def _fits(value: object, levels: int) -> bool:
    """Tell whether everything that later walks through the headers will come back from it."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return levels > 0 and all(_fits(item, levels - 1) for item in value if isinstance(item, dict | list))
    return True
