"""Bodies to values and back (lua-api.md 1.2); the worker calls this at every delivery and publish.

A value is `None`, `bool`, `int`, `float`, `str`, `bytes` (text that is not UTF-8), `list` (a Lua table
with keys 1..n, or without any entry), `dict` (any other table, with its keys as they are) or a
`HandlerError`. Integers are Lua's: of 64 bits with a sign; a bigger one becomes a float when decoded.
"""

from __future__ import annotations

import contextlib
import math
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgpack
import orjson

from lunaq_runtime.limits import MAX_DEPTH
from lunaq_runtime.lua.errors import HandlerError

if TYPE_CHECKING:
    from collections.abc import Callable

JSON = "json"
MSGPACK = "msgpack"
RAW = "raw"

ALIASES = {
    "": JSON,
    "json": JSON,
    "json/plain": JSON,
    "msgpack": MSGPACK,
    "application/msgpack": MSGPACK,
    "raw": RAW,
}
"""Every spelling an entry may use for its `codec` (lua-api.md 1.2), to the name used here."""

_CONTENT_TYPES = {
    JSON: "application/json",
    MSGPACK: "application/msgpack",
    RAW: "application/octet-stream",
}
_CODEC_OF_TYPE = {
    "application/json": JSON,
    "text/json": JSON,
    "application/msgpack": MSGPACK,
    "application/x-msgpack": MSGPACK,
    "application/vnd.msgpack": MSGPACK,
}
_MAX_INTEGER = 2**63 - 1
_MIN_INTEGER = -(2**63)
_MAX_HOLES = 65_536
_LEAST_DEEP = 2 * MAX_DEPTH  # bytes: each level is opened and closed
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_NUMBER = b"0" * 19
# As numbers: looking for one byte takes no time, which counting, or looking for two, does.
_POINT, _BRACKET = ord("."), ord("[")
_whole = re.compile(rb"\.0").search
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)

HEAVY = 512 * 1024
"""Bytes from which on a body is weighed before it is decoded."""

_MOST_TYPES = 256
_ENTRY, _TABLE = 16, 56
"""Bytes that an entry of a Lua table needs at least, and an empty table."""


class TooHeavyError(Exception):
    """A body that cannot fit into its handler's memory once it is decoded."""


class CodecError(Exception):
    """A body that does not decode, or a value that does not encode; the text says where and why."""


def canonical(name: str) -> str:
    """Resolve a codec's spelling to `json`, `msgpack` or `raw`; ValueError `unknown payload codec`."""
    try:
        return ALIASES[name]
    except KeyError:
        raise ValueError(f"unknown payload codec {name!r}: use json, msgpack or raw") from None


def weigh_json(body: bytes) -> int:
    """Tell how many bytes the tables of a JSON body need in Lua at least; what is no JSON weighs anything.

    Decoded, `[[],[],...` is thirty times its size: what cannot fit into a handler's memory is not decoded.
    """
    weight = _weight(body)
    # Most brackets and commas of a big body may be text.
    return weight if weight < len(body) else _weight(_STRING.sub(b"", body))


def check_weight(body: bytes, content_type: str | None, codec: str, limit: int) -> None:
    """Raise TooHeavyError where the tables of a body need more than `limit` bytes in Lua."""
    codec = _codec_for(content_type, codec)
    if codec == JSON and weigh_json(body) > limit:
        raise TooHeavyError(
            f"the body's tables need more than the handler's {limit} bytes: raise `memoryLimit`, or send less"
        )
    if codec == MSGPACK:
        _weigh_msgpack(body, limit)


def _weigh_msgpack(body: bytes, limit: int) -> None:
    left = limit

    def count(entries: Any) -> None:
        nonlocal left
        left -= _TABLE + _ENTRY * len(entries)
        if left < 0:
            raise TooHeavyError(
                f"the body's tables need more than the handler's {limit} bytes: raise `memoryLimit`,"
                " or send less"
            )

    with contextlib.suppress(ValueError, TypeError):  # what is no MessagePack, decoding will tell
        msgpack.unpackb(
            body, strict_map_key=False, raw=True, use_list=False, list_hook=count, object_pairs_hook=count
        )


def _weight(body: bytes) -> int:
    return _ENTRY * body.count(b",") + _TABLE * (body.count(b"[") + body.count(b"{"))


def decode(body: bytes, content_type: str | None, codec: str) -> Any:
    """Decode a delivery's body for a queue of `codec` (lua-api.md 1.2.3), or raise CodecError.

    A content type of JSON or MessagePack wins over the codec json or msgpack; any other is not looked
    at. The codec raw gives the body as it is, whatever its content type.
    """
    return _DECODERS[_codec_for(content_type, codec)](body)


class DecodersForLua(dict[str | None, "Callable[[bytes], Any]"]):
    """By content type, what decodes like `decode`; found when first looked up.

    It may leave an integer of JSON that needs 64 bits and no sign as it is: who hands values to Lua
    (`lua.bridge`) looks anyway.
    """

    def __init__(self, codec: str) -> None:
        self._codec = codec

    def __missing__(self, content_type: str | None) -> Callable[[bytes], Any]:
        if len(self) >= _MOST_TYPES:
            self.clear()
        found = _codec_for(content_type, self._codec)
        decoder = self[content_type] = _decode_json_for_lua if found == JSON else _DECODERS[found]
        return decoder


@lru_cache
def decoders_for_lua(codec: str) -> DecodersForLua:
    """Give the decoders of a codec, the same for all slots and threads."""
    return DecodersForLua(codec)


def _codec_for(content_type: str | None, codec: str) -> str:
    codec = canonical(codec)
    return (codec != RAW and content_type and _codec_of(content_type)) or codec


def encode(value: Any, codec: str) -> tuple[bytes, str]:
    """Encode `value` to a body and its content type, or raise CodecError."""
    encoder, content_type = encoder_of(codec)
    return encoder(value), content_type


def encoder_of(codec: str) -> tuple[Callable[[Any], bytes], str]:
    """Give what encodes values (it raises CodecError), and the content type of what it makes."""
    codec = canonical(codec)
    return _ENCODERS[codec], _CONTENT_TYPES[codec]


@lru_cache(maxsize=256)
def _codec_of(content_type: str) -> str | None:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type.endswith("+json"):
        return JSON
    return _CODEC_OF_TYPE.get(media_type)


def _decode_json_for_lua(body: bytes) -> Any:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise CodecError(f"the body is not JSON: {error}") from None
    # Walking every value would double the cost of a delivery; a look at the bytes does not.
    return _normalised(value, 0) if len(body) > _LEAST_DEEP and _may_be_deep(body) else value


def _decode_json(body: bytes) -> Any:
    value = _decode_json_for_lua(body)
    return _normalised(value, 0) if _LONG_NUMBER in body.translate(_DIGITS_TO_ZERO) else value


def _may_be_deep(body: bytes) -> bool:
    """Whether JSON of more than `_LEAST_DEEP` bytes may nest deeper than it should."""
    return (_BRACKET in body and body.count(b"[")) + body.count(b"{") > MAX_DEPTH


def _decode_msgpack(body: bytes) -> Any:
    try:
        try:
            value = msgpack.unpackb(body, strict_map_key=False)
        except UnicodeDecodeError:
            value = msgpack.unpackb(body, strict_map_key=False, raw=True)
    except (ValueError, TypeError) as error:
        reason = str(error) or type(error).__name__
        raise CodecError(f"the body is not MessagePack: {reason}") from None
    return _normalised(value, 0)


def _decode_raw(body: bytes) -> Any:
    return _text(body)


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _normalised(value: Any, depth: int) -> Any:
    """Bring a decoded value to what Lua holds, changing containers in place."""
    kind = type(value)
    if kind is list or kind is dict:
        if depth == MAX_DEPTH:
            raise CodecError(f"the body nests deeper than the maximum depth of {MAX_DEPTH}")
        if kind is list:
            for index, item in enumerate(value):
                value[index] = _normalised(item, depth + 1)
            return value
        return {_normalised_key(key): _normalised(item, depth + 1) for key, item in value.items()}
    if kind is int:
        return value if _MIN_INTEGER <= value <= _MAX_INTEGER else float(value)
    if kind is bytes:
        return _text(value)
    if kind is msgpack.ExtType:
        raise CodecError(f"the body has a MessagePack extension of type {value.code}, which Lua cannot hold")
    if kind is msgpack.Timestamp:
        return value.to_unix()
    return value


def _normalised_key(key: Any) -> Any:
    normal = _normalised(key, 0)
    if normal is None or normal != normal:  # noqa: PLR0124 - NaN is what differs from itself
        raise CodecError("the body has a map key that is nil or NaN, which no Lua table can hold")
    return normal


def _encode_json(value: Any) -> bytes:
    try:
        body = orjson.dumps(value, default=_default)
    except TypeError as error:
        _check(value, "the message", 0)
        raise CodecError(f"the message does not encode as JSON: {error}") from None
    if len(body) > _LEAST_DEEP and _may_be_deep(body):
        _check(value, "the message", 0)
    if _POINT in body and _whole(body):
        body = orjson.dumps(_whole_floats(value), default=_default)
    return body


def _default(value: Any) -> Any:
    if isinstance(value, HandlerError):
        return _error_text(value)
    raise TypeError(f"a {type(value).__name__} has no JSON form")


def _error_text(error: HandlerError) -> str:
    return ": ".join((*error.contexts, error.text))


def _whole_floats(value: Any) -> Any:
    """Copy a value with integral floats as integers: JSON has `3`, where Lua has `3.0`."""
    kind = type(value)
    if kind is float:
        return int(value) if value.is_integer() and abs(value) <= _MAX_INTEGER else value
    if kind is list:
        return [_whole_floats(item) for item in value]
    if kind is dict:
        return {key: _whole_floats(item) for key, item in value.items()}
    return value


def _check(value: Any, at: str, depth: int) -> None:
    """Raise CodecError for the first part of `value` that JSON cannot hold, naming its place."""
    if isinstance(value, bytes):
        raise CodecError(
            f"{at} is text that is not UTF-8, which JSON cannot hold:"
            " encode it with base64, or use the codec msgpack or raw"
        )
    if not isinstance(value, (list, dict)):
        return
    if depth == MAX_DEPTH:
        raise CodecError(f"the message nests deeper than the maximum depth of {MAX_DEPTH}")
    if isinstance(value, list):
        for index, item in enumerate(value, start=1):
            _check(item, f"{at}[{index}]", depth + 1)
        return
    _check_keys(value, at)
    for key, item in value.items():
        _check(item, f"{at}.{key}", depth + 1)


def _check_keys(table: dict[Any, Any], at: str) -> None:
    strings = sum(isinstance(key, str) for key in table)
    if strings == len(table):
        return
    if strings:
        raise CodecError(f"{at} has mixed keys: a JSON object has text keys only, an array 1 to n only")
    if all(isinstance(key, int) for key in table):
        raise CodecError(f"{at} is a sparse array: fill its holes, or make its keys text with tostring")
    raise CodecError(f"{at} has a key that is neither UTF-8 text nor a place in an array")


def _encode_msgpack(value: Any) -> bytes:
    try:
        body: bytes = msgpack.packb(_packable(value, "the message", 0))
    except (ValueError, TypeError, OverflowError) as error:
        raise CodecError(f"the message does not encode as MessagePack: {error}") from None
    return body


def _packable(value: Any, at: str, depth: int) -> Any:
    """Copy a value into what MessagePack holds by lua-api.md 1.2.2."""
    if isinstance(value, HandlerError):
        return _error_text(value)
    if not isinstance(value, (list, dict)):
        return value
    if depth == MAX_DEPTH:
        raise CodecError(f"the message nests deeper than the maximum depth of {MAX_DEPTH}")
    if isinstance(value, list):
        return [_packable(item, f"{at}[{index}]", depth + 1) for index, item in enumerate(value, start=1)]
    positions = [key for key in value if type(key) is int and key > 0]
    if not positions:
        return {_key_text(key): _packable(item, f"{at}.{key}", depth + 1) for key, item in value.items()}
    if len(positions) < len(value):
        raise CodecError(f"{at} has mixed keys: MessagePack would drop those that are not 1 to n")
    last = max(positions)
    if last - len(positions) > _MAX_HOLES:
        raise CodecError(f"{at} is a sparse array with more than {_MAX_HOLES} holes: make its keys text")
    items = [None] * last
    for position in positions:
        items[position - 1] = _packable(value[position], f"{at}[{position}]", depth + 1)
    return items


def _key_text(key: Any) -> str | bytes:
    if isinstance(key, (str, bytes)):
        return key
    if isinstance(key, bool):
        return "true" if key else "false"
    if isinstance(key, float) and not math.isfinite(key):
        raise CodecError("a table key is infinite: MessagePack keys are text")
    return str(key)


def _encode_raw(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    kind = "table" if isinstance(value, (list, dict)) else "nil" if value is None else type(value).__name__
    raise CodecError(f"the codec raw sends a string, not a {kind}: encode it first, such as with json.encode")


_DECODERS: dict[str, Callable[[bytes], Any]] = {
    JSON: _decode_json,
    MSGPACK: _decode_msgpack,
    RAW: _decode_raw,
}
_ENCODERS: dict[str, Callable[[Any], bytes]] = {
    JSON: _encode_json,
    MSGPACK: _encode_msgpack,
    RAW: _encode_raw,
}
