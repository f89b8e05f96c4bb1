"""Values across the line between Lua and Python; used by `state` and `callbacks`.

Lua strings are bytes here (`LuaRuntime(encoding=None)`), so arbitrary bytes survive. In plain data handed
out, text that is UTF-8 is a `str` and any other is `bytes`; on the way in, both are accepted.
"""

from __future__ import annotations

import math
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from lunaq_runtime.limits import MAX_DEPTH
from lunaq_runtime.lua.errors import HandlerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_MAX_INTEGER = 2**63 - 1
_MIN_INTEGER = -(2**63)


class Marker:
    """Starts a table in a stream of tokens; an integer count of its parts follows."""

    def __init__(self, name: str) -> None:
        self.name = name


ARRAY = Marker("array")
OBJECT = Marker("object")


class DepthError(ValueError):
    """A value nests deeper than `MAX_DEPTH`."""


def text(value: bytes) -> str | bytes:
    """Decode a Lua string where it is UTF-8, else leave it as it is."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def shown(value: Any) -> str:
    """Turn a Lua string into text for people: what is not UTF-8 is replaced."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def take(tokens: Iterator[Any]) -> Any:
    """Build the next value of a stream made by `prelude/encode.lua`."""
    value = next(tokens)
    kind = value.__class__
    if kind is bytes:
        return text(value)
    if kind is not Marker:
        return value
    count = next(tokens)
    if value is ARRAY:
        return [take(tokens) for _ in range(count)]
    table = {}
    for _ in range(count):
        key = take(tokens)  # before its value
        table[key] = take(tokens)
    return table


def pairs(values: Sequence[Any]) -> dict[Any, Any]:
    """Build a table of its keys, Lua strings, and their values: Lua strings, numbers and booleans."""
    each = iter(values)
    table: dict[Any, Any] = {}
    try:
        for key, item in zip(each, each, strict=True):
            table[key.decode()] = item.decode() if item.__class__ is bytes else item
    except UnicodeDecodeError:
        plain = [text(value) if value.__class__ is bytes else value for value in values]
        return dict(zip(plain[::2], plain[1::2], strict=True))
    return table


def to_lua(value: Any, table: Callable[[Any], Any], new_object: Callable[[], Any]) -> Any:
    """Convert plain data to what lupa pushes as real Lua values.

    `table` makes a Lua table of a prepared dict or list, `new_object` an empty one that encodes as `{}`.
    None inside a container vanishes (an array gets a hole). Raises DepthError.
    """
    prepared = _prepare(value, new_object, 0)
    return table(prepared) if prepared.__class__ in (dict, list) else prepared


def _prepare(value: Any, new_object: Callable[[], Any], depth: int) -> Any:  # noqa: PLR0911 - one per type
    kind = value.__class__
    if kind is str:
        return value.encode("utf-8", "surrogateescape")
    if kind is dict:
        if depth >= MAX_DEPTH:
            raise DepthError(f"nested deeper than the maximum depth of {MAX_DEPTH}")
        if not value:
            return new_object()
        depth += 1
        return {
            (key.encode("utf-8", "surrogateescape") if key.__class__ is str else _key(key)): (
                item if item.__class__ is bool else _prepare(item, new_object, depth)
            )
            for key, item in value.items()
        }
    if kind is list or kind is tuple:
        if depth >= MAX_DEPTH:
            raise DepthError(f"nested deeper than the maximum depth of {MAX_DEPTH}")
        return [_prepare(item, new_object, depth + 1) for item in value]
    if kind is int:
        return value if _MIN_INTEGER <= value <= _MAX_INTEGER else float(value)
    if value is None or kind is bytes or kind is float or kind is bool:
        return value
    return _foreign(value)


def _key(key: Any) -> Any:
    if key.__class__ is int:
        return key if _MIN_INTEGER <= key <= _MAX_INTEGER else float(key)
    if key is None or (key.__class__ is float and math.isnan(key)):
        return b"null"
    if key.__class__ in (bytes, bool, float):
        return key
    return str(key).encode("utf-8", "surrogateescape")


def _foreign(value: Any) -> Any:
    """Convert what only broker headers hold (lua-api.md 1.3)."""
    if isinstance(value, HandlerError):
        return value
    if isinstance(value, datetime):
        return int(value.timestamp())
    if isinstance(value, Decimal):
        return float(value)
    return str(value).encode("utf-8", "surrogateescape")
