"""Lua headers to AMQP properties and back (lua-api.md 1.3 and 1.4); the worker calls this at every message.

The map must not let a handler route, forge what the broker or the runtime writes, or send what would make
the broker close the channel (and take other publishers' confirms with it): such a header is dropped, and
a warning says so.
"""

from __future__ import annotations

import math
from datetime import datetime
from decimal import Decimal
from typing import Any

from lunaq_runtime.codecs import CodecError
from lunaq_runtime.limits import MAX_HEADER_BYTES, MAX_HEADERS
from lunaq_runtime.message import PERSISTENT, Properties

PRIORITY_WORDS = {"low": 0, "normal": 4, "high": 9}
"""What the words of the neutral `priority` header mean as an AMQP priority (design.md section 4)."""

_MAX_PRIORITY_HEADER = 9
_MAX_PRIORITY = 255
_MAX_SHORT_TEXT = 255
_MAX_EXPIRATION = 2**32 - 1
_MAX_DELAY = 2**31 - 1
_MAX_INTEGER = 2**63 - 1
_MIN_INTEGER = -(2**63)

_TEXT_PROPERTIES = {
    "correlation_id": "correlation_id",
    "reply_to": "reply_to",
    "message_type": "type",
    "content_type": "content_type",
    "encoding": "content_encoding",
    "amqp.content_encoding": "content_encoding",
}
_RESERVED = frozenset({"attempts", "CC", "BCC"})
_BROKER_OWNED = frozenset({"x-death", "x-delivery-count", "x-acquired-count"})
_BROKER_PREFIXES = ("x-first-death-", "x-last-death-")


def to_properties(
    headers: dict[str, Any],
    content_type: str,
    now: int,
    message_id: str,
    *,
    map_priority: bool,
) -> tuple[Properties, list[str]]:
    """Map a publish's headers; `now` is in Unix seconds, `content_type` the codec's.

    `message_id` holds unless a header of that name gives another one. `map_priority` lets the neutral
    `priority` header set the AMQP priority as well. Returns the properties and a warning for each header
    that was dropped. Reserved headers are dropped here too, whoever the caller is. Raises CodecError where
    the headers are more or larger than `MAX_HEADERS` and `MAX_HEADER_BYTES` allow.
    """
    _check_size(headers)
    mapping = _Mapping()
    for key, value in headers.items():
        mapping.add(key, value)
    fields = mapping.fields
    if map_priority and "priority" not in fields:
        priority = _neutral_priority(mapping.table.get("priority"))
        if priority is not None:
            fields["priority"] = priority
    fields.setdefault("content_type", content_type)
    fields.setdefault("timestamp", now)
    fields.setdefault("delivery_mode", PERSISTENT)
    fields.setdefault("message_id", message_id)
    return Properties(headers=mapping.table, **fields), mapping.warnings


def to_lua_headers(
    properties: Properties,
    redelivered: bool,  # noqa: FBT001 - in the order of a delivery's own fields
    exchange: str,
    routing_key: str,
) -> dict[str, Any]:
    """Build what `msg:headers()` shows of a delivery; entries of the header table win over properties."""
    headers: dict[str, Any] = {
        "amqp.priority": properties.priority or 0,
        "amqp.delivery_mode": properties.delivery_mode or 0,
        "amqp.redelivered": redelivered,
        "amqp.exchange": exchange,
        "amqp.routing_key": routing_key,
    }
    texts = (
        ("correlation_id", properties.correlation_id),
        ("reply_to", properties.reply_to),
        ("content_type", properties.content_type),
        ("encoding", properties.content_encoding),
        ("message_type", properties.type),
        ("amqp.expiration", properties.expiration),
    )
    headers.update((key, text) for key, text in texts if text)
    if properties.timestamp is not None:
        headers["timestamp"] = properties.timestamp
    for key, value in properties.headers.items():
        lua_value = _to_lua(value)
        if lua_value is not None:
            headers[key] = lua_value
    return headers


class _Mapping:
    """The publish direction of table 1.4, one header at a time."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        self.table: dict[str, Any] = {}
        self.warnings: list[str] = []

    def add(self, key: str, value: Any) -> None:
        if _is_reserved(key):
            self._drop(key, "the name is reserved")
        elif not isinstance(value, (str, bytes, bool, int, float)):
            self._drop(key, f"a value of type {type(value).__name__} does not travel as a header")
        elif key in _TEXT_PROPERTIES:
            self._add_text(key, value)
        elif key in _SPECIAL:
            _SPECIAL[key](self, key, value)
        else:
            self._add_header(key, value)

    def _drop(self, key: str, reason: str) -> None:
        self.warnings.append(f"header {key[:80]!r} is dropped: {reason}")

    def _add_header(self, key: str, value: Any) -> None:
        if not 0 < len(key.encode("utf-8", "replace")) <= _MAX_SHORT_TEXT:
            self._drop(key, f"a header's name has 1 to {_MAX_SHORT_TEXT} bytes")
        else:
            self.table[key] = value

    def _add_text(self, key: str, value: Any) -> None:
        text = self._short_text(key, value)
        if not text:
            return
        target = _TEXT_PROPERTIES[key]
        # `amqp.content_encoding` wins over `encoding`, whichever comes first.
        if key != "encoding" or target not in self.fields:
            self.fields[target] = text

    def _short_text(self, key: str, value: Any) -> str | None:
        text = _as_text(value)
        if text is None:
            self._drop(key, "it is not UTF-8 text")
        elif len(text.encode("utf-8", "replace")) > _MAX_SHORT_TEXT:
            self._drop(key, f"AMQP carries at most {_MAX_SHORT_TEXT} bytes in it")
        else:
            return text
        return None

    def add_message_id(self, key: str, value: Any) -> None:
        # Only a text becomes the property; the header itself stays visible either way.
        if isinstance(value, str) and value:
            text = self._short_text(key, value)
            if text is None:
                return
            self.fields["message_id"] = text
        self._add_header(key, value)

    def add_timestamp(self, key: str, value: Any) -> None:
        number = _whole_number(value)
        if number is None or not 0 <= number <= _MAX_INTEGER:
            self._drop(key, "it must be Unix seconds, a whole number")
        else:
            self.fields["timestamp"] = number

    def add_priority(self, key: str, value: Any) -> None:
        number = _truncated(value)
        if number is None or not 0 <= number <= _MAX_PRIORITY:
            self._drop(key, f"it must be a number from 0 to {_MAX_PRIORITY}")
        else:
            self.fields["priority"] = number

    def add_expiration(self, key: str, value: Any) -> None:
        text = None if isinstance(value, bool) else _as_text(value)
        if not text or not (text.isascii() and text.isdigit()):
            self._drop(key, "it must be whole milliseconds, such as 30000")
        else:
            # The broker closes the channel at a longer one.
            self.fields["expiration"] = text if len(text) < 10 else str(min(int(text), _MAX_EXPIRATION))  # noqa: PLR2004 - 10 digits may exceed 32 bits

    def add_delivery_mode(self, key: str, value: Any) -> None:
        number = _whole_number(value)
        if number in (1, PERSISTENT):
            self.fields["delivery_mode"] = number
        elif number != 0:
            self._drop(key, "it must be 1 (transient) or 2 (persistent)")

    def add_delay(self, key: str, value: Any) -> None:
        number = _truncated(value)
        if number is None or not 0 <= number <= _MAX_DELAY:
            self._drop(key, "it must be a number of milliseconds of 31 bits")
        else:
            self.table["x-delay"] = number

    def ignore(self, key: str, value: Any) -> None:
        """Send nothing: every publish is `mandatory` already."""


_SPECIAL = {
    "message_id": _Mapping.add_message_id,
    "timestamp": _Mapping.add_timestamp,
    "amqp.priority": _Mapping.add_priority,
    "amqp.expiration": _Mapping.add_expiration,
    "amqp.delivery_mode": _Mapping.add_delivery_mode,
    "amqp.x_delay": _Mapping.add_delay,
    "amqp.mandatory": _Mapping.ignore,
}


def _check_size(headers: dict[str, Any]) -> None:
    if len(headers) > MAX_HEADERS:
        raise CodecError(f"{len(headers)} headers are more than {MAX_HEADERS}: put data into the body")
    # A key or text has at most 4 bytes per character; few come near the limit and are counted exactly.
    size = sum(len(key) + _size(value) for key, value in headers.items())
    if size * 4 > MAX_HEADER_BYTES:
        size = sum(len(key.encode("utf-8", "replace")) + _exact_size(value) for key, value in headers.items())
    if size > MAX_HEADER_BYTES:
        raise CodecError(f"headers of {size} bytes are more than {MAX_HEADER_BYTES}: put data into the body")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes)) else 8


def _exact_size(value: Any) -> int:
    return len(value.encode("utf-8", "replace")) if isinstance(value, str) else _size(value)


def _is_reserved(key: str) -> bool:
    return (
        key in _RESERVED or key.startswith("x_") or key in _BROKER_OWNED or key.startswith(_BROKER_PREFIXES)
    )


def _as_text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _whole_number(value: Any) -> int | None:
    number = _truncated(value)
    return number if number is not None and number == value else None


def _truncated(value: Any) -> int | None:
    if isinstance(value, (bool, str, bytes)) or not math.isfinite(value):
        return None
    return int(value)


def _neutral_priority(value: Any) -> int | None:
    if isinstance(value, str):
        return PRIORITY_WORDS.get(value)
    if value is None or isinstance(value, bytes):
        return None
    number = _truncated(value)
    return number if number is not None and 0 <= number <= _MAX_PRIORITY_HEADER else None


def _to_lua(value: Any) -> Any:  # noqa: PLR0911 - one line per AMQP field type
    """Convert a header's value of any AMQP field type to what Lua holds (lua-api.md 1.3)."""
    kind = type(value)
    if kind is str or kind is bool or kind is float or value is None:
        return value
    if kind is int:
        return value if _MIN_INTEGER <= value <= _MAX_INTEGER else float(value)
    if isinstance(value, (bytes, bytearray)):
        data = bytes(value)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data
    if isinstance(value, dict):
        return {key: _to_lua(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_lua(item) for item in value]
    if isinstance(value, datetime):
        return int(value.timestamp())
    if isinstance(value, Decimal):
        return float(value)
    return str(value)
