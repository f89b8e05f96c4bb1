"""The modules `base64`, `hash` and `crypto` (lua-api.md 3.11), as far as they need Python.

Inputs are bounded: encoding holds the GIL, and one call cannot be interrupted.
"""

from __future__ import annotations

import binascii
import functools
import hashlib
import hmac
import secrets
import uuid
from typing import TYPE_CHECKING, Any

from lunaq_runtime.lua.modules import Calls, Functions, invalid, whole

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_INPUT = 16 * 1024 * 1024
MAX_RANDOM = 1024 * 1024
ALGORITHMS = ("md5", "sha1", "sha256", "sha512")
_ALPHANUMERIC = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_BYTE_VALUES = 256


def functions(calls: Calls) -> Functions:
    """Name the callbacks of `prelude/digests.lua`."""
    named: dict[str, Callable[..., Any]] = {
        "base64_encode": lambda data: binascii.b2a_base64(_data(data), newline=False),
        "base64_decode": _decoded,
        "random_bytes": lambda count: secrets.token_bytes(_count(count)),
        "random_string": _random_string,
        "random_uuid": lambda: str(uuid.uuid4()),
        "equal": lambda one, other: hmac.compare_digest(_data(one), _data(other)),
    }
    for algorithm in ALGORITHMS:
        named[f"hash_{algorithm}"] = functools.partial(_hash, algorithm)
        named[f"hmac_{algorithm}"] = functools.partial(_hmac, algorithm)
    return {name: calls.answering(function) for name, function in named.items()}


def _data(data: Any, name: str = "data") -> bytes:
    if not isinstance(data, bytes):
        raise invalid(f"{name} must be a string")
    if len(data) > MAX_INPUT:
        raise invalid(f"{name} has {len(data)} bytes, more than {MAX_INPUT}")
    return data


def _decoded(text: Any) -> bytes:
    data = _data(text)
    try:
        return binascii.a2b_base64(data, strict_mode=True)
    except binascii.Error as error:
        raise invalid(f"not base64: {error}") from None


def _hash(algorithm: str, data: Any, raw: Any = None) -> bytes:
    return _shown(hashlib.new(algorithm, _data(data), usedforsecurity=False).digest(), raw)


def _hmac(algorithm: str, data: Any, secret: Any, raw: Any = None) -> bytes:
    return _shown(hmac.digest(_data(secret, "secret"), _data(data), algorithm), raw)


def _shown(digest: bytes, raw: Any) -> bytes:
    return digest if raw else digest.hex().encode()


def _count(count: Any) -> int:
    number = whole(count)
    if number is None or not 1 <= number <= MAX_RANDOM:
        raise invalid(f"length must be a whole number from 1 to {MAX_RANDOM}")
    return number


def _random_string(count: Any, charset: Any = None) -> bytes:
    """Draw from the charset without favour: bytes beyond its last whole multiple are drawn again."""
    wanted = _count(count)
    letters = _ALPHANUMERIC if charset is None else charset
    if not isinstance(letters, bytes) or not 1 <= len(letters) <= _BYTE_VALUES:
        raise invalid(f"charset must be a string of 1 to {_BYTE_VALUES} characters")
    usable = _BYTE_VALUES - _BYTE_VALUES % len(letters)
    table = bytes(letters[value % len(letters)] for value in range(_BYTE_VALUES))
    unusable = bytes(range(usable, _BYTE_VALUES))
    drawn = b""
    while len(drawn) < wanted:
        drawn += secrets.token_bytes((wanted - len(drawn)) * 2).translate(table, unusable)
    return drawn[:wanted]
