"""Properties to bytes and back: what pamqp says of the same bytes, and nothing that could raise."""

from __future__ import annotations

import math
import struct
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pamqp import commands, frame
from pamqp.header import ContentHeader

from lunaq_runtime.brokers.amqp import decode
from lunaq_runtime.brokers.amqp.delivery import AmqpDelivery
from lunaq_runtime.brokers.wire import encode_properties, encode_table, stamp
from lunaq_runtime.codecs import encoder_of
from lunaq_runtime.message import Properties, Stamped
from lunaq_runtime.worker.message_ids import new_id

SHORT = st.text(max_size=60)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=12,
)
HEADERS = st.dictionaries(st.text(max_size=60), VALUES, max_size=6)
PROPERTIES = st.builds(
    Properties,
    content_type=st.none() | SHORT,
    content_encoding=st.none() | SHORT,
    headers=HEADERS,
    delivery_mode=st.none() | st.sampled_from((1, 2)),
    priority=st.none() | st.integers(0, 255),
    correlation_id=st.none() | SHORT,
    reply_to=st.none() | SHORT,
    expiration=st.none() | st.integers(0, 10**12).map(str),
    message_id=st.none() | SHORT,
    timestamp=st.none() | st.integers(0, 2**32 - 1),
    type=st.none() | SHORT,
    user_id=st.none() | SHORT,
    app_id=st.none() | SHORT,
)


def plain(value: Any) -> Any:
    """Turn what pamqp decodes into the types that `message.Properties` promises."""
    match value:
        case dict():
            return {key: plain(item) for key, item in value.items()}
        case list():
            return [plain(item) for item in value]
        case bytearray():
            return bytes(value)
        case datetime():
            return int(value.timestamp())
        case Decimal():
            return float(value)
    return value


def head(flags_and_values: bytes, method: commands.Basic.Deliver | None = None) -> tuple[bytes, int]:
    """Put properties into the frames of a delivery; tells where their values begin."""
    deliver: bytes = frame.marshal(method or commands.Basic.Deliver("c", 1, False, "x", "k"), 1)
    payload = struct.pack(">HHQ", 60, 0, 5) + flags_and_values
    return deliver + struct.pack(">BHI", 2, 1, len(payload)) + payload + b"\xce", len(deliver) + 21


def by_pamqp(flags_and_values: bytes) -> Properties:
    header = ContentHeader()
    header.unmarshal(struct.pack(">HHQ", 60, 0, 5) + flags_and_values)
    raw = header.properties
    names = set(Properties.__dataclass_fields__) - {"type", "headers", "timestamp"}
    return Properties(
        **{name: getattr(raw, name) for name in names},
        type=raw.message_type,
        headers=plain(raw.headers) if raw.headers else {},
        timestamp=plain(raw.timestamp),
    )


@given(PROPERTIES)
def test_what_is_encoded_reads_the_same_here_and_by_pamqp(properties: Properties):
    encoded = encode_properties(properties)
    sent = Properties(
        **{
            name: None if value == "" or name == "user_id" else value
            for name in Properties.__dataclass_fields__
            for value in [getattr(properties, name)]
        }
    )
    assert decode.properties(*head(encoded)) == sent
    assert by_pamqp(encoded) == sent


def short(text: bytes) -> bytes:
    return bytes((len(text),)) + text


def long(raw: bytes) -> bytes:
    return struct.pack(">I", len(raw)) + raw


def fixed(code: bytes, layout: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    return values.map(lambda value: code + struct.pack(f">{layout}", value))


# Every type of a field that RabbitMQ or the errata know, as bytes.
FIELDS = st.recursive(
    st.one_of(
        st.sampled_from([b"V", b"\x00", b"t\x00", b"t\x01"]),
        fixed(b"b", "b", st.integers(-128, 127)),
        fixed(b"B", "B", st.integers(0, 255)),
        fixed(b"s", "h", st.integers(-(2**15), 2**15 - 1)),
        fixed(b"u", "H", st.integers(0, 2**16 - 1)),
        fixed(b"I", "i", st.integers(-(2**31), 2**31 - 1)),
        fixed(b"i", "I", st.integers(0, 2**32 - 1)),
        fixed(b"l", "q", st.integers(-(2**63), 2**63 - 1)),
        fixed(b"L", "q", st.integers(-(2**63), 2**63 - 1)),
        fixed(b"f", "f", st.floats(width=32, allow_nan=False)),
        fixed(b"d", "d", st.floats(allow_nan=False)),
        st.tuples(st.integers(0, 255), st.integers(0, 2**32 - 1)).map(
            lambda pair: b"D" + struct.pack(">BI", *pair)
        ),
        st.binary(max_size=30).map(lambda raw: b"S" + long(raw)),
        st.binary(max_size=30).map(lambda raw: b"x" + long(raw)),
        fixed(b"T", "Q", st.integers(0, 253_402_300_799_999)),
    ),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: b"A" + long(b"".join(items)))
        | st.lists(st.tuples(st.binary(max_size=9).filter(bytes.isascii), inner), max_size=4).map(
            lambda items: b"F" + long(b"".join(short(key) + item for key, item in items))
        )
    ),
    max_leaves=10,
)


@example([("negative", b"D\x00\x80\x00\x00\x00")])
@given(st.lists(st.tuples(SHORT.filter(lambda text: len(text.encode()) < 256), FIELDS), max_size=8))
def test_every_type_of_a_foreign_header_reads_as_by_pamqp(fields: list[tuple[str, bytes]]):
    table = long(b"".join(short(key.encode()) + value for key, value in fields))
    raw = b"\x20\x00" + table
    assert decode.properties(*head(raw)) == by_pamqp(raw)


@given(st.binary(max_size=80))
def test_no_bytes_raise(raw: bytes):
    for flags in (b"\xff\xfc", b"\x20\x00", b"\x00\x01", b"\xff\xff"):
        delivery = AmqpDelivery("q", 1, 1, 0, b"", *head(flags + raw))
        assert isinstance(delivery.properties, Properties)
        assert delivery.content_type is None or isinstance(delivery.content_type, str)
        assert (delivery.exchange, delivery.routing_key) == ("x", "k")


def nested(depth: int) -> bytes:
    inner = b""
    for _ in range(depth):
        inner = b"\x01nF" + long(inner)
    return long(inner)


@pytest.mark.parametrize(
    "table",
    [
        b"\x00\x00\x00\x05\x02\xff\xfet\x01",
        nested(32),
        nested(3000),
        long(b"\x01k?"),
        long(b"\x01kS\x00\x00\x00\xffx"),
        long(b"\x01kA\x00\x00\x00\x03tt"),
        long(b"\x01k"),
        long(b"\x01kI\x00"),
        long(b"\x01kF\xff\xff\xff\xff"),
    ],
    ids=["name", "deep", "deeper", "type", "text", "array", "no value", "number", "length"],
)
def test_headers_that_cannot_be_decoded_are_kept_as_bytes_and_the_rest_is_read(table: bytes):
    decoded = decode.properties(*head(b"\x20\x80" + table + short(b"m-1")))
    assert decoded.headers == {decode.UNDECODABLE_HEADERS: table[4:]}
    assert decoded.message_id == "m-1"


def test_headers_as_deep_as_allowed_are_read():
    decoded: Any = decode.properties(*head(b"\x20\x00" + nested(31))).headers
    for _ in range(31):
        decoded = decoded["n"]
    assert decoded == {}


def test_text_that_is_not_utf8_is_patched_and_a_time_beyond_the_calendar_is_none():
    raw = b"\x04\x40" + short(b"\xff!") + b"\x7f" * 8
    decoded = decode.properties(*head(raw))
    assert (decoded.correlation_id, decoded.timestamp) == ("\ufffd!", None)
    late = decode.properties(*head(b"\x20\x00" + long(short(b"t") + b"T" + b"\x7f" * 8)))
    assert late.headers == {"t": None}


def test_a_time_in_milliseconds_is_told_by_its_size():
    raw = b"\x00\x40" + struct.pack(">Q", 1_700_000_000_999)
    assert decode.properties(*head(raw)).timestamp == 1_700_000_000


def test_floats_keep_all_their_bits():
    table = {"pi": math.pi, "nan": math.nan, "inf": -math.inf}
    decoded, end = decode.table(encode_table(table), 0)
    assert end == len(encode_table(table))
    assert decoded["pi"] == math.pi
    assert math.isnan(decoded["nan"])
    assert decoded["inf"] == -math.inf


def test_the_user_id_is_left_out_for_it_would_close_the_channel():
    assert encode_properties(Properties(user_id="somebody")) == b"\x00\x00"


@pytest.mark.parametrize(
    ("properties", "content_type", "bare"),
    [
        (Properties(), None, True),
        (Properties(content_type="application/json", message_id="m"), "application/json", True),
        (Properties(content_type="text/ü", headers={"k": 1}), "text/ü", False),
        (Properties(headers={"k": 1}), None, False),
    ],
)
def test_content_type_and_bareness_are_told_without_decoding(
    properties: Properties,
    content_type: str | None,
    bare: bool,  # noqa: FBT001 - a parameter
    monkeypatch: pytest.MonkeyPatch,
):
    delivery = AmqpDelivery("q", 3, 7, 1, b"body", *head(encode_properties(properties)))
    with monkeypatch.context() as patch:
        patch.setattr(decode, "properties", None)
        for _ in range(2):
            assert (delivery.content_type, delivery.bare) == (content_type, bare)
    assert delivery.properties == properties
    assert delivery.properties is delivery.properties
    assert (delivery.queue, delivery.generation, delivery.tag, delivery.redelivered) == ("q", 3, 7, True)


def test_made_up_content_types_are_not_all_remembered():
    for number in range(1000):
        raw = encode_properties(Properties(content_type=f"text/{number}"))
        assert AmqpDelivery("q", 1, 1, 0, b"", *head(raw)).content_type == f"text/{number}"
    from lunaq_runtime.brokers.amqp import delivery  # noqa: PLC0415 - to look inside

    assert len(delivery._known) <= 256


def test_exchange_and_routing_key_are_read_from_the_method():
    method = commands.Basic.Deliver("a-consumer", 9, True, "the exchange", "the key")
    delivery = AmqpDelivery("q", 1, 9, 1, b"", *head(b"\x00\x00", method))
    assert (delivery.exchange, delivery.routing_key) == ("the exchange", "the key")


@pytest.mark.parametrize("codec", ["json", "msgpack", "raw"])
def test_a_stamped_message_is_encoded_like_any_other_of_its_properties(codec: str):
    _, content_type = encoder_of(codec)
    for timestamp in (0, 1_700_000_000):
        message = Stamped("app:out.x", b"{}", content_type, new_id(), timestamp)
        assert stamp(message) == encode_properties(message.properties)
        assert decode.properties(stamp(message), 2) == message.properties
