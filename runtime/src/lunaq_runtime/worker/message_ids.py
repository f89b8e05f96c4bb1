"""Message ids: random UUIDs (version 4), whose randomness is drawn for many at once; used by `requests`."""

from __future__ import annotations

import os

_BATCH = 256
_LENGTH = 16
_VARIANT = "89ab"

_drawn: list[bytes] = []


def new_id() -> str:
    """Make an id of 36 characters; from any thread."""
    try:
        raw = _drawn.pop()
    except IndexError:
        block = os.urandom(_BATCH * _LENGTH)
        _drawn.extend(block[at : at + _LENGTH] for at in range(_LENGTH, len(block), _LENGTH))
        raw = block[:_LENGTH]
    digits = raw.hex()
    variant = _VARIANT[raw[8] & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
