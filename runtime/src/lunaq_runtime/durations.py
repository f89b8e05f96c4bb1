"""Duration texts such as `1h30m`, as Go and Kubernetes write them; used by `entries.parse` and the operator.

A duration is an `int` of nanoseconds here, so that nothing is rounded before its user says to what.
"""

from __future__ import annotations

import re

NANOSECOND = 1
MICROSECOND = 1_000 * NANOSECOND
MILLISECOND = 1_000 * MICROSECOND
SECOND = 1_000 * MILLISECOND
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE

_UNITS = {
    "ns": NANOSECOND,
    "us": MICROSECOND,
    "\u00b5s": MICROSECOND,
    "\u03bcs": MICROSECOND,
    "ms": MILLISECOND,
    "s": SECOND,
    "m": MINUTE,
    "h": HOUR,
}
_MAXIMUM = 2**63 - 1
_HINT = "write decimals with a unit, such as 250ms, 1.5s or 1h30m (units: ns us ms s m h)"
_PART = re.compile("([0-9]*)(?:\\.([0-9]*))?(ns|us|\u00b5s|\u03bcs|ms|s|m|h)")


def parse_duration(text: str) -> int:
    """Read Go duration syntax (lua-api.md 2.4) into nanoseconds, a fraction of one cut off.

    Raises ValueError whose text quotes the input and says how to write it.
    """
    sign = -1 if text.startswith("-") else 1
    rest = text[1:] if text.startswith(("-", "+")) else text
    if rest == "0":
        return 0
    total, position = 0, 0
    while position < len(rest) or not rest:
        part = _PART.match(rest, position)
        if part is None or not (part[1] or part[2]):
            raise ValueError(f"{text!r} is not a duration: {_HINT}")
        unit = _UNITS[part[3]]
        fraction = part[2] or ""
        total += int(part[1] or "0") * unit
        total += int(fraction or "0") * unit // 10 ** len(fraction)
        position = part.end()
        if total > _MAXIMUM:
            raise ValueError(f"{text[:40]!r} is too long a duration: at most about 292 years")
    return sign * total


def format_duration(nanoseconds: int) -> str:
    """Write a duration as Go does: `1h30m0s`, `1.5s`, `250ms`, `0s`; `parse_duration` reads it back."""
    sign, rest = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    if rest == 0:
        return "0s"
    for unit, name in ((MICROSECOND, "ns"), (MILLISECOND, "us"), (SECOND, "ms")):
        if rest < unit:
            return f"{sign}{_decimal(rest, _UNITS[name])}{name}"
    hours, rest = divmod(rest, HOUR)
    minutes, rest = divmod(rest, MINUTE)
    text = f"{_decimal(rest, SECOND)}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    if hours:
        text = f"{hours}h{text}"
    return sign + text


def to_seconds(nanoseconds: int) -> float:
    """Convert to seconds, as event loops want them."""
    return nanoseconds / SECOND


def to_milliseconds(nanoseconds: int) -> int:
    """Convert to whole milliseconds, as brokers want them; ValueError where that would lose a part."""
    milliseconds, rest = divmod(nanoseconds, MILLISECOND)
    if rest:
        raise ValueError(f"{format_duration(nanoseconds)} is finer than a millisecond: round it to ms")
    return milliseconds


def _decimal(amount: int, unit: int) -> str:
    whole, rest = divmod(amount, unit)
    if not rest:
        return str(whole)
    digits = len(str(unit)) - 1
    return f"{whole}.{rest:0{digits}d}".rstrip("0")
