"""The `uuid` module's functions (lua-api.md 3.6); `callbacks` offers them to the prelude."""

from __future__ import annotations

import functools
import secrets
import time
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_VARIANTS = {
    uuid.RFC_4122: "RFC4122",
    uuid.RESERVED_MICROSOFT: "Microsoft",
    uuid.RESERVED_NCS: "NCS",
    uuid.RESERVED_FUTURE: "Future",
}
_GREGORIAN_TO_UNIX = 0x01B21DD213814000
"""100 ns steps from 1582-10-15, where version 1 starts counting, to 1970-01-01."""


def functions(answer: Callable[..., tuple[bool, Any]]) -> dict[str, Callable[..., Any]]:
    """Name the callbacks; `answer` calls a function and turns ValueError into an Invalid error."""
    checked = {
        "uuid_v1": lambda *_: str(uuid.uuid1()),
        "uuid_v3": lambda *given: str(uuid.uuid3(*_namespace_and_name(given))),
        "uuid_v4": lambda *_: str(uuid.uuid4()),
        "uuid_v5": lambda *given: str(uuid.uuid5(*_namespace_and_name(given))),
        "uuid_v7": lambda *_: str(_v7(time.time_ns() // 1_000_000)),
        "uuid_version": lambda *given: _parsed(given).version or 0,
        "uuid_variant": lambda *given: _VARIANTS.get(_parsed(given).variant, "Reserved"),
        "uuid_parse": lambda *given: _described(_parsed(given)),
        "uuid_format": _formatted,
    }
    exported: dict[str, Callable[..., Any]] = {
        name: functools.partial(answer, function) for name, function in checked.items()
    }
    exported["uuid_validate"] = _valid
    return exported


def _v7(milliseconds: int) -> uuid.UUID:
    """RFC 9562: 48 bits of Unix milliseconds, version, 12 random bits, variant, 62 random bits."""
    number = (milliseconds & (2**48 - 1)) << 80
    number |= 0x7 << 76 | secrets.randbits(12) << 64
    number |= 0b10 << 62 | secrets.randbits(62)
    return uuid.UUID(int=number)


def _parse(value: Any) -> uuid.UUID:
    text = value.decode(errors="replace") if isinstance(value, bytes) else ""
    if not text:
        raise ValueError("a UUID as text is required")
    try:
        return uuid.UUID(text)
    except ValueError:
        raise ValueError(f"invalid UUID: {text[:80]}") from None


def _parsed(given: tuple[Any, ...]) -> uuid.UUID:
    return _parse(given[0])


def _valid(value: bytes) -> bool:
    try:
        _parse(value)
    except ValueError:
        return False
    return True


def _namespace_and_name(given: tuple[Any, ...]) -> tuple[uuid.UUID, str]:
    namespace = _parsed(given)
    name = given[1]
    if not isinstance(name, bytes) or not name:
        raise ValueError("a name as text is required")
    return namespace, name.decode(errors="replace")


def _described(value: uuid.UUID) -> dict[str, Any]:
    described: dict[str, Any] = {
        "version": value.version or 0,
        "variant": _VARIANTS.get(value.variant, "Reserved"),
    }
    if value.version == 1:
        described["timestamp"] = (value.time - _GREGORIAN_TO_UNIX) // 10_000_000
        described["node"] = ":".join(f"{byte:02x}" for byte in value.node.to_bytes(6, "big"))
    elif value.version == 7:  # noqa: PLR2004 - the version that carries Unix milliseconds
        described["timestamp"] = (value.int >> 80) // 1000
    return described


def _formatted(*given: Any) -> str:
    value = _parsed(given)
    style = given[1]
    if style in (None, b"standard"):
        return str(value)
    if style == b"simple":
        return value.hex
    if style == b"urn":
        return value.urn
    raise ValueError("unknown format: use standard, simple or urn")
