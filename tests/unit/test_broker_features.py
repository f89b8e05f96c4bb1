"""What brokers lack, as data, and what becomes of a topology on Qpid Broker-J."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lunaq_runtime.brokers.amqp import qpid
from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.brokers.features import CONSEQUENCES, MEMORY, PRODUCTS, QPID, RABBITMQ, Feature, product_of
from lunaq_runtime.entries.model import Queue
from lunaq_runtime.ids import Id
from lunaq_runtime.message import Properties
from lunaq_runtime.topology import QueueDecl, Topology, combine, topology_of

PAGE = Path(__file__).parents[2] / "docs" / "brokers.md"
CLASSIC = Queue(id=Id("app", "emails"), driver=Id("app", "mq"), queue_name="app:emails", type="classic")


def arguments(topology: Topology, name: str) -> dict[str, Any]:
    return next(queue.arguments for queue in qpid.translated(topology).queues if queue.name == name)


@pytest.mark.parametrize(
    ("announced", "product"),
    [
        ("RabbitMQ", RABBITMQ),
        ("Apache Qpid Broker-J Core", QPID),
        ("Lunaq memory broker", MEMORY),
    ],
)
def test_a_broker_is_known_by_what_it_says_it_is(announced: str, product: object):
    assert product_of(announced) is product


def test_empty_tables_in_headers_are_written_as_no_value_at_any_depth():
    headers = {"a": {}, "b": [{}, [], 1, {"c": {}}], "d": {"e": {"f": {}}, "g": "x"}, "h": []}
    assert qpid.without_empty_tables(Properties(headers=headers)).headers == {
        "a": None,
        "b": [None, [], 1, {"c": None}],
        "d": {"e": {"f": None}, "g": "x"},
        "h": [],
    }
    assert qpid.without_empty_tables(Properties()).headers == {}


def test_an_unknown_broker_lacks_nothing_but_was_never_tested():
    other = product_of("LavinMQ")
    assert not other.missing
    assert not other.tested


def test_the_page_has_the_table_that_the_runtime_goes_by():
    rows = [f"| | {' | '.join(product.title for product in PRODUCTS)} | Where it is missing |"]
    rows.append("| --- |" + " --- |" * (len(PRODUCTS) + 1))
    for feature in Feature:
        marks = " | ".join("yes" if product.has(feature) else "**no**" for product in PRODUCTS)
        rows.append(f"| {feature.value} | {marks} | {CONSEQUENCES[feature]} |")
    assert "\n".join(rows) in PAGE.read_text()


def test_the_page_names_the_versions_that_are_tested():
    text = PAGE.read_text()
    for product in PRODUCTS:
        for version in filter(None, product.tested):
            assert f"| {product.title} {version}" in text


def test_a_retry_queue_leads_back_through_an_alternate_binding():
    found = arguments(topology_of(CLASSIC), "app:emails.retry.1000")
    assert json.loads(found.pop("alternateBinding")) == {"destination": "app:emails"}
    assert found == {"maximumMessageTtl": 1000, "expiryPolicy": "ROUTE_TO_ALTERNATE"}


def test_nothing_is_left_of_rabbitmqs_words():
    full = replace(CLASSIC, max_priority=9, single_active_consumer=True, message_ttl_ms=5000, owner="me")
    translated = qpid.translated(topology_of(full))
    assert all(not exchange.arguments for exchange in translated.exchanges)
    assert arguments(topology_of(full), "app:emails") == {
        "maximumMessageTtl": 5000,
        "x-single-active-consumer": True,
        "priorities": 10,
        "alternateBinding": '{"destination": "app:emails.dead"}',
        "expiryPolicy": "ROUTE_TO_ALTERNATE",
    }
    assert arguments(topology_of(full), "app:emails.dead") == {}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"type": "quorum"}, "no quorum queues: set type: Classic"),
        ({"max_length": 1}, "full queue"),
        ({"max_length_bytes": 1}, "full queue"),
        ({"queue_expiry_ms": 1000}, "x-expires"),
    ],
)
def test_what_broker_j_would_not_do_safely_is_refused(changes: dict[str, Any], told: str):
    with pytest.raises(BrokerError, match=told) as error:
        qpid.translated(topology_of(replace(CLASSIC, **changes)))
    assert error.value.reason == "unsupported"


@pytest.mark.parametrize(
    "dead_letter", [{"x-dead-letter-exchange": "an.exchange"}, {"x-dead-letter-exchange": ""}]
)
def test_dead_letters_that_go_to_no_queue_are_refused(dead_letter: dict[str, Any]):
    with pytest.raises(BrokerError, match="only to a queue"):
        qpid.translated(Topology(queues=(QueueDecl("q", dead_letter),)))


def test_a_queue_is_declared_after_the_one_it_dead_letters_to():
    first = replace(CLASSIC, dead_letter=Id("app", "later"), dead_letter_queue_name="app:later")
    later = replace(CLASSIC, id=Id("app", "later"), queue_name="app:later")
    names = [queue.name for queue in qpid.translated(combine(map(topology_of, (first, later)))).queues]
    assert len(names) == len(set(names)) == 9
    assert names.index("app:later.dead") < names.index("app:later") < names.index("app:emails")
    assert names.index("app:emails") < names.index("app:emails.retry.1000")


def test_queues_that_dead_letter_in_a_circle_are_refused():
    one = replace(CLASSIC, dead_letter=Id("app", "two"), dead_letter_queue_name="app:two")
    two = replace(CLASSIC, queue_name="app:two", dead_letter=Id("app", "emails"))
    with pytest.raises(BrokerError, match="circle"):
        qpid.translated(combine(map(topology_of, (one, two))))


def test_only_an_expiration_is_refused():
    qpid.refuse_expiration(Properties(priority=3))
    with pytest.raises(BrokerError, match="expiration"):
        qpid.refuse_expiration(Properties(expiration="1000"))
