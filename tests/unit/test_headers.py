"""Headers come back as they were set, and none of them can route, forge or break a channel."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunaq_runtime.codecs import CodecError
from lunaq_runtime.headers import to_lua_headers, to_properties
from lunaq_runtime.message import Properties

NOW = 1_700_000_000
ID = "6f6b1f6e-0000-4000-8000-000000000001"
MAPPED = {
    "correlation_id",
    "reply_to",
    "message_type",
    "content_type",
    "encoding",
    "timestamp",
    "message_id",
    "attempts",
    "CC",
    "BCC",
}
PLAIN_KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60).filter(
    lambda key: key not in MAPPED and not key.startswith(("x_", "amqp.", "x-"))
)
VALUES = (
    st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
    | st.booleans()
    | st.integers(min_value=-(2**63), max_value=2**63 - 1)
    | st.floats(allow_nan=False)
)


def publish(headers: dict[str, Any], *, map_priority: bool = False) -> tuple[Properties, list[str]]:
    return to_properties(headers, "application/json", NOW, ID, map_priority=map_priority)


def received(headers: dict[str, Any]) -> dict[str, Any]:
    return to_lua_headers(publish(headers)[0], False, "app:emails.x", "")


@given(st.dictionaries(PLAIN_KEYS, VALUES, max_size=8))
def test_headers_of_the_four_kinds_come_back_equal_with_their_type(headers: dict[str, Any]) -> None:
    back = received(headers)
    assert {key: (type(value), value) for key, value in headers.items()} == {
        key: (type(back[key]), back[key]) for key in headers
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("priority", "high"),
        ("priority", 9),
        ("schema", "v1"),
        ("partition_key", "k"),
        ("sqs.group", "g"),
        ("kafka.key", 1),
        ("amqp.unknown", True),
        ("traceparent", "00-1-2-01"),
        ("reply_to", "app:replies"),
        ("amqp.expiration", "30000"),
        ("amqp.priority", 0),
        ("message_id", "order-1"),
        ("timestamp", 5),
    ],
)
def test_well_known_headers_come_back_under_their_own_name(key: str, value: Any) -> None:
    back = received({key: value})[key]
    assert (type(back), back) == (type(value), value)


@pytest.mark.parametrize(
    ("key", "value", "field", "mapped"),
    [
        ("correlation_id", 42, "correlation_id", "42"),
        ("correlation_id", True, "correlation_id", "true"),
        ("reply_to", "q", "reply_to", "q"),
        ("message_type", 1.5, "type", "1.5"),
        ("content_type", "text/csv", "content_type", "text/csv"),
        ("encoding", "gzip", "content_encoding", "gzip"),
        ("amqp.content_encoding", "br", "content_encoding", "br"),
        ("timestamp", 7.0, "timestamp", 7),
        ("amqp.priority", 9.9, "priority", 9),
        ("amqp.expiration", 30000.0, "expiration", "30000"),
        ("amqp.expiration", 10**12, "expiration", "4294967295"),
        ("amqp.delivery_mode", 1, "delivery_mode", 1),
        ("amqp.delivery_mode", 0, "delivery_mode", 2),
    ],
)
def test_mapped_headers_become_their_property_and_leave_the_table(
    key: str, value: Any, field: str, mapped: Any
) -> None:
    properties, warnings = publish({key: value})
    assert getattr(properties, field) == mapped
    assert properties.headers == {}
    assert warnings == []


def test_what_nobody_set_has_defaults() -> None:
    properties, warnings = publish({})
    assert properties == Properties(
        content_type="application/json", delivery_mode=2, message_id=ID, timestamp=NOW
    )
    assert warnings == []


@pytest.mark.parametrize(
    "headers",
    [
        {"encoding": "gzip", "amqp.content_encoding": "br"},
        {"amqp.content_encoding": "br", "encoding": "gzip"},
    ],
)
def test_amqp_content_encoding_wins_over_encoding_in_either_order(headers: dict[str, Any]) -> None:
    assert publish(headers)[0].content_encoding == "br"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("x_original_queue", "app:other"),
        ("x_suspect", True),
        ("attempts", 99),
        ("x-death", "forged"),
        ("x-first-death-queue", "forged"),
        ("x-delivery-count", 50),
        ("CC", "elsewhere"),
        ("BCC", "elsewhere"),
        ("timestamp", "yesterday"),
        ("timestamp", 1.5),
        ("timestamp", -1),
        ("timestamp", 1e300),
        ("amqp.priority", "9"),
        ("amqp.priority", 256),
        ("amqp.priority", float("nan")),
        ("amqp.expiration", "30s"),
        ("amqp.expiration", -1),
        ("amqp.expiration", "\u0663"),
        ("amqp.expiration", True),
        ("amqp.delivery_mode", 3),
        ("amqp.x_delay", "5"),
        ("amqp.x_delay", 2**31),
        ("correlation_id", "c" * 256),
        ("correlation_id", b"\xff"),
        ("message_id", "\u20ac" * 86),
        ("k" * 256, "v"),
        ("", "v"),
        ("table", {"a": 1}),
        ("nothing", None),
    ],
)
def test_what_must_not_or_cannot_be_sent_is_dropped_with_a_warning(key: str, value: Any) -> None:
    properties, warnings = publish({key: value, "kept": 1})
    assert properties == publish({"kept": 1})[0]
    assert len(warnings) == 1
    assert repr(key[:80]) in warnings[0]


def test_the_mandatory_flag_is_never_sent() -> None:
    assert publish({"amqp.mandatory": False}) == publish({})


def test_x_delay_becomes_the_plugins_header() -> None:
    assert publish({"amqp.x_delay": 1500.7})[0].headers == {"x-delay": 1500}


def test_a_message_id_header_becomes_the_property_and_stays_visible() -> None:
    properties, _ = publish({"message_id": "order-1"})
    assert (properties.message_id, properties.headers) == ("order-1", {"message_id": "order-1"})
    properties, _ = publish({"message_id": 7})
    assert (properties.message_id, properties.headers) == (ID, {"message_id": 7})


@pytest.mark.parametrize(
    ("value", "priority"),
    [
        ("low", 0),
        ("normal", 4),
        ("high", 9),
        (0, 0),
        (9, 9),
        (3.7, 3),
        (10, None),
        (-1, None),
        ("urgent", None),
        (True, None),
    ],
)
def test_the_priority_header_becomes_the_amqp_priority_where_it_is_asked_for(
    value: Any, priority: int | None
) -> None:
    properties, warnings = publish({"priority": value}, map_priority=True)
    assert (properties.priority, properties.headers, warnings) == (priority, {"priority": value}, [])
    assert publish({"priority": value})[0].priority is None


def test_amqp_priority_wins_over_the_neutral_one() -> None:
    assert publish({"priority": "high", "amqp.priority": 0}, map_priority=True)[0].priority == 0


def test_more_headers_than_one_frame_is_sure_to_carry_are_an_error() -> None:
    with pytest.raises(CodecError, match="300 headers are more than 256: put data into the body"):
        publish({f"k{number}": 1 for number in range(300)})
    with pytest.raises(CodecError, match="headers of 45001 bytes are more than 32768"):
        publish({"k": "\u20ac" * 15_000})
    assert publish({"k": "a" * 30_000})[0].headers["k"] == "a" * 30_000


def test_a_delivery_without_any_property_still_shows_what_the_broker_knows() -> None:
    assert to_lua_headers(Properties(), redelivered=True, exchange="e", routing_key="k") == {
        "amqp.priority": 0,
        "amqp.delivery_mode": 0,
        "amqp.redelivered": True,
        "amqp.exchange": "e",
        "amqp.routing_key": "k",
    }


def test_the_header_table_wins_over_properties_of_the_same_name() -> None:
    properties = Properties(correlation_id="property", headers={"correlation_id": "header"})
    assert to_lua_headers(properties, redelivered=False, exchange="", routing_key="")["correlation_id"] == (
        "header"
    )


def test_every_amqp_field_type_becomes_what_lua_holds() -> None:
    table = {
        "bytes": b"text",
        "binary": b"\xff",
        "decimal": Decimal("1.5"),
        "time": datetime.fromtimestamp(NOW, UTC),
        "u64": 2**64 - 1,
        "void": None,
        "x-death": [{"count": 3, "queue": b"app:emails", "time": datetime.fromtimestamp(1, UTC)}],
    }
    headers = to_lua_headers(Properties(headers=table), redelivered=False, exchange="", routing_key="")
    assert {key: value for key, value in headers.items() if not key.startswith("amqp.")} == {
        "bytes": "text",
        "binary": b"\xff",
        "decimal": 1.5,
        "time": NOW,
        "u64": float(2**64 - 1),
        "x-death": [{"count": 3, "queue": "app:emails", "time": 1}],
    }
