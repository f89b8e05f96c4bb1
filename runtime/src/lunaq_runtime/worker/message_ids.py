"""Message ids: random UUIDs (version 4), of which many are made at once; used by `requests`."""

from __future__ import annotations

import os
from binascii import hexlify
from struct import Struct

_BATCH = 64
_LENGTH = 16
_VERSION_AT, _VERSION = 6, bytes(0x40 | byte & 0x0F for byte in range(256))
_VARIANT_AT, _VARIANT = 8, bytes(0x80 | byte & 0x3F for byte in range(256))
_GROUPS = Struct("8s4s4s4s12s").iter_unpack

_made: list[bytes] = []


def new_id() -> bytes:
    """Make an id of 36 ASCII characters; from any thread."""
    try:
        return _made.pop()
    except IndexError:
        block = bytearray(os.urandom(_BATCH * _LENGTH))
        for at, bits in ((_VERSION_AT, _VERSION), (_VARIANT_AT, _VARIANT)):
            block[at::_LENGTH] = block[at::_LENGTH].translate(bits)
        first, *others = [b"%b-%b-%b-%b-%b" % groups for groups in _GROUPS(hexlify(block))]
        _made.extend(others)
        return first
