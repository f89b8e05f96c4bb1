"""The messages that attacks send (tests/attacks/bombs.toml), each by the name that the corpus gives it."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import msgpack

from lunaq_runtime.message import Properties

if TYPE_CHECKING:
    from collections.abc import Callable

_MEBIBYTE = 1024 * 1024
_MSGPACK = "application/msgpack"


def _json(body: bytes, **properties: Any) -> tuple[bytes, Properties]:
    return body, Properties(content_type="application/json", message_id="attack", **properties)


def _pack(body: bytes) -> tuple[bytes, Properties]:
    return body, Properties(content_type=_MSGPACK, message_id="attack")


def _with(**headers: Any) -> tuple[bytes, Properties]:
    return _json(b'"attack"', headers=headers)


def _deep_header() -> tuple[bytes, Properties]:
    table: dict[str, Any] = {}
    for _ in range(200):
        table = {"t": table}
    return _with(deep=table)


MESSAGES: dict[str, Callable[[], tuple[bytes, Properties]]] = {
    "deep_json": lambda: _json(b"[" * 100_000 + b"]" * 100_000),
    "json_one_too_deep": lambda: _json(b"[" * 129 + b"]" * 129),
    "too_large": lambda: _json(b'"' + b"x" * (16 * _MEBIBYTE) + b'"'),
    "json_brackets": lambda: _json(b"[" + b"[]," * (4 * _MEBIBYTE) + b"1]"),
    "json_commas": lambda: _json(b'{"text":"' + b"," * 6_000_000 + b'"}'),
    "json_duplicates": lambda: _json(
        b"{" + b",".join(b'"k":%d' % number for number in range(100_000)) + b"}"
    ),
    "json_huge_numbers": lambda: _json(
        b"[1" + b"0" * 305 + b",0.1" + b"0" * 5000 + b",18446744073709551616,9223372036854775807]"
    ),
    "json_nan": lambda: _json(b"[NaN,Infinity,-Infinity]"),
    "json_lone_surrogate": lambda: _json(b'"\\ud800"'),
    "json_not_utf8": lambda: _json(b'"\xff\xfe"'),
    "empty": lambda: _json(b""),
    "lying_content_type": lambda: _json(msgpack.packb({"a": 1})),
    "msgpack_announced": lambda: _pack(b"\xdd\xff\xff\xff\xff" + b"\x01" * 100),
    "msgpack_empties": lambda: _pack(b"\xdd" + struct.pack(">I", 8_000_000) + b"\x90" * 8_000_000),
    "msgpack_deep": lambda: _pack(b"\x91" * 100_000 + b"\x01"),
    "msgpack_extension": lambda: _pack(msgpack.packb(msgpack.ExtType(5, b"x" * 100))),
    "msgpack_timestamp": lambda: _pack(msgpack.packb(msgpack.Timestamp(2**62, 1))),
    "msgpack_nan_key": lambda: _pack(msgpack.packb({float("nan"): 1, None: 2})),
    "msgpack_list_key": lambda: _pack(b"\x81\x91\x01\x01"),
    "many_headers": lambda: _with(**{f"h{number}": number for number in range(5000)}),
    "large_header": lambda: _with(large="x" * 2_000_000),
    "larger_header": lambda: _with(large="x" * 20_000_000),
    "deep_header": _deep_header,
    "forged_headers": lambda: _with(
        attempts="many",
        x_dead_letter_reason="none",
        x_expiration=5,
        x_suspect="yes",
        x_original_queue=b"\xff",
    ),
    "forged_attempts": lambda: _with(attempts=2**63 - 1),
    "long_properties": lambda: (
        b'"attack"',
        Properties(
            content_type="application/json",
            message_id="m" * 255,
            correlation_id="c" * 255,
            reply_to="r" * 255,
            type="t" * 255,
        ),
    ),
    "odd_expiration": lambda: _json(
        b'"attack"', expiration="99999999999999999999", priority=255, timestamp=253402300799
    ),
}
