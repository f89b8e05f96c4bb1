"""What a handler publishes is what a handler receives, and what cannot travel is refused with a reason."""

from __future__ import annotations

import contextlib
import math
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunaq_runtime import codecs
from lunaq_runtime.lua.errors import HandlerError

INTEGERS = st.integers(min_value=-(2**63), max_value=2**63 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@given(VALUES)
def test_json_brings_every_plain_value_back_equal(value: Any) -> None:
    body, content_type = codecs.encode(value, "json")
    assert content_type == "application/json"
    assert codecs.decode(body, content_type, "json") == value


@given(VALUES | st.binary())
def test_msgpack_brings_every_plain_value_back_equal(value: Any) -> None:
    body, content_type = codecs.encode(value, "application/msgpack")
    assert content_type == "application/msgpack"
    expected = value
    if isinstance(value, bytes):
        try:
            expected = value.decode()
        except UnicodeDecodeError:
            expected = value
    assert codecs.decode(body, None, "msgpack") == expected


@given(st.binary())
def test_raw_hands_over_every_body_unchanged_as_text_where_it_is_text(body: bytes) -> None:
    value = codecs.decode(body, "application/json", "raw")
    assert codecs.encode(value, "raw") == (body, "application/octet-stream")
    assert isinstance(value, str) == (body.decode("utf-8", "replace").encode() == body)


@given(st.binary(max_size=40), st.sampled_from(["json", "msgpack"]))
def test_any_bytes_either_decode_or_are_a_codec_error(body: bytes, codec: str) -> None:
    with contextlib.suppress(codecs.CodecError):
        codecs.decode(body, None, codec)


@pytest.mark.parametrize(
    ("content_type", "codec"),
    [
        ("application/json", "msgpack"),
        ("Application/JSON; charset=utf-8", "msgpack"),
        ("application/cloudevents+json", "msgpack"),
        (None, "json"),
        ("", "json/plain"),
        ("text/plain", "json"),
        ("application/x-unheard-of", "json"),
    ],
)
def test_a_json_body_decodes_by_its_content_type_and_else_by_the_codec(
    content_type: str | None, codec: str
) -> None:
    assert codecs.decode(b'{"a":1}', content_type, codec) == {"a": 1}


def test_a_msgpack_body_decodes_by_its_content_type_on_a_json_queue() -> None:
    assert codecs.decode(msgpack.packb([1, "two"]), "application/msgpack", "json") == [1, "two"]


def test_decoders_for_lua_are_those_of_the_codec_and_made_up_content_types_are_not_all_remembered() -> None:
    decoders = codecs.DecodersForLua("json")
    packed, _ = codecs.encode({"n": 1}, "msgpack")
    for number in range(1000):
        assert decoders[f"text/{number}"](b'{"n": 1}') == {"n": 1}
        assert decoders["application/msgpack"](packed) == {"n": 1}
    assert decoders[None](b"[2]") == [2]
    assert len(decoders) <= 256
    assert codecs.DecodersForLua("raw")["application/json"](b"[2]") == "[2]"


def test_text_that_the_codec_cannot_decode_is_an_error_and_not_a_nil() -> None:
    with pytest.raises(codecs.CodecError, match="the body is not JSON"):
        codecs.decode(b"hello", "text/plain", "json")


@pytest.mark.parametrize("body", [b"", b"{", b"1 2", b"[1] x", b"NaN", b'"\\ud800"', b'"\xff"', b"{1:2}"])
def test_what_is_not_exactly_one_json_text_is_refused(body: bytes) -> None:
    with pytest.raises(codecs.CodecError, match="the body is not JSON"):
        codecs.decode(body, "application/json", "json")


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x01\x02", b"\x92\x01", b"\x81\x90\x01", b"\x91" * 2000])
def test_what_is_not_exactly_one_msgpack_value_is_refused(body: bytes) -> None:
    with pytest.raises(codecs.CodecError, match="the body is not MessagePack"):
        codecs.decode(body, None, "msgpack")


def test_json_integers_of_64_bits_stay_exact() -> None:
    assert codecs.decode(b"[9007199254740993,-9223372036854775808]", None, "json") == [
        9007199254740993,
        -(2**63),
    ]
    assert codecs.encode(9007199254740993, "json")[0] == b"9007199254740993"


@pytest.mark.parametrize("number", [2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**40])
def test_json_integers_beyond_64_bits_become_floats(number: int) -> None:
    value = codecs.decode(b'{"n":[%d]}' % number, None, "json")["n"][0]
    assert type(value) is float
    assert value == float(number)


def test_msgpack_integers_beyond_64_bits_with_a_sign_become_floats() -> None:
    value = codecs.decode(b"\x91\xcf" + struct.pack(">Q", 2**64 - 1), None, "msgpack")[0]
    assert type(value) is float


def test_digits_inside_text_are_not_taken_for_a_number() -> None:
    assert codecs.decode(b'"99999999999999999999999"', None, "json") == "9" * 23


def test_floats_that_json_lacks_become_null_and_integral_ones_lose_their_fraction() -> None:
    body, _ = codecs.encode([math.nan, math.inf, 3.0, 1.5, "1.0", -0.0], "json")
    assert body == b'[null,null,3,1.5,"1.0",0]'


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_nesting_up_to_128_travels_and_deeper_is_refused_both_ways(codec: str) -> None:
    body, _ = codecs.encode(nested(128), codec)
    assert codecs.decode(body, None, codec) == nested(128)
    for depth in (129, 300):
        with pytest.raises(codecs.CodecError, match="deeper than the maximum depth of 128"):
            codecs.encode(nested(depth), codec)
    with pytest.raises(codecs.CodecError, match="deeper than the maximum depth of 128"):
        codecs.decode(b"[" * 129 + b"]" * 129 if codec == "json" else b"\x91" * 129 + b"\x01", None, codec)


def test_many_brackets_side_by_side_are_not_deep() -> None:
    value = [[1]] * 500
    assert codecs.decode(codecs.encode(value, "json")[0], None, "json") == value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"to": [b"\xff"]}, r"the message\.to\[1\] is text that is not UTF-8.*base64"),
        ({1: "a", 3: "c"}, "the message is a sparse array"),
        ({"x": {1: "a", "b": 2}}, r"the message\.x has mixed keys"),
        ({b"\xff": 1}, "the message has a key that is neither"),
        ({1.5: 1}, "the message has a key that is neither"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_its_place(value: Any, reason: str) -> None:
    with pytest.raises(codecs.CodecError, match=reason):
        codecs.encode(value, "json")


def test_msgpack_fills_holes_with_nil_and_refuses_to_drop_keys() -> None:
    assert codecs.decode(codecs.encode({1: "a", 3: "c"}, "msgpack")[0], None, "msgpack") == ["a", None, "c"]
    assert codecs.decode(codecs.encode({0: "a", -1: True}, "msgpack")[0], None, "msgpack") == {
        "0": "a",
        "-1": True,
    }
    with pytest.raises(codecs.CodecError, match="mixed keys"):
        codecs.encode({1: "a", "b": 2}, "msgpack")


def test_one_far_key_does_not_become_a_huge_msgpack_array() -> None:
    with pytest.raises(codecs.CodecError, match="sparse array"):
        codecs.encode({2**40: "a"}, "msgpack")


def test_msgpack_text_that_is_not_utf8_stays_bytes_and_the_rest_stays_text() -> None:
    assert codecs.decode(b"\x92\xa1\xff\xa1a", None, "msgpack") == [b"\xff", "a"]


def test_msgpack_timestamps_are_unix_seconds_and_other_extensions_are_refused() -> None:
    assert codecs.decode(msgpack.packb(msgpack.Timestamp(5, 500_000_000)), None, "msgpack") == 5.5
    with pytest.raises(codecs.CodecError, match="extension of type 5"):
        codecs.decode(msgpack.packb(msgpack.ExtType(5, b"a")), None, "msgpack")


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_errors_travel_as_their_text(codec: str) -> None:
    error = HandlerError("no such user", contexts=("lookup failed",))
    body, _ = codecs.encode({"error": error}, codec)
    assert codecs.decode(body, None, codec) == {"error": "lookup failed: no such user"}


@pytest.mark.parametrize("value", [{"a": 1}, [1], 5, None, True])
def test_raw_sends_strings_only(value: Any) -> None:
    with pytest.raises(codecs.CodecError, match="the codec raw sends a string"):
        codecs.encode(value, "raw")


def test_an_unknown_codec_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown payload codec 'xml': use json, msgpack or raw"):
        codecs.canonical("xml")
