"""Kubernetes quantities of bytes, such as `64Mi`; used by `entries.parse`."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal

_SUFFIXES = {
    "": 1,
    **{suffix: 1000**power for power, suffix in enumerate(("k", "M", "G", "T", "P", "E"), start=1)},
    **{suffix: 1024**power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)},
}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,2}|k|Ki|[MGTPE]i?)?")


def parse_quantity(text: str) -> int:
    """Read a quantity into bytes, rounded up; ValueError says how to write one."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is not a quantity: write bytes with a suffix, such as 64Mi or 1Gi")
    number, suffix = match[1], match[2] or ""
    if suffix[:1] in ("e", "E") and len(suffix) > 1 and suffix != "Ei":
        amount = Decimal(number + suffix)
    else:
        amount = Decimal(number) * _SUFFIXES[suffix]
    return int(amount.to_integral_value(ROUND_CEILING))
