"""Decisions about a delivery, from plain data."""

import pytest

from lunaq_runtime.entries.model import Queue, Retry
from lunaq_runtime.ids import Id
from lunaq_runtime.message import Delivery, Properties
from lunaq_runtime.retry import (
    Ack,
    Failed,
    HandedBack,
    Poison,
    Republish,
    Requeue,
    Start,
    Succeeded,
    decide,
    original_expiration,
    triage,
)

NOW = 1_700_000_000.7
QUEUE = Queue(
    id=Id("app", "emails"),
    driver=Id("app", "broker"),
    queue_name="app:emails",
    retry=Retry(max_attempts=4, delays_ms=(100, 500)),
)
OBSERVED = Queue(
    id=Id("app", "foreign"),
    driver=Id("app", "broker"),
    queue_name="foreign",
    observe=True,
    retry=Retry(max_attempts=4, delays_ms=(100, 500)),
)
FAILED = Failed("no route to host", "Unavailable")


def delivery(redelivered=False, body=b'{"to":"a"}', headers=None, **properties):  # noqa: FBT002
    return Delivery(
        queue="app:emails",
        tag=1,
        body=body,
        properties=Properties(headers=headers or {}, message_id="m-1", **properties),
        redelivered=redelivered,
    )


def republished(plan):
    assert isinstance(plan, Republish)
    return plan.message


def test_success_is_acked_and_nothing_else():
    assert decide(delivery(), Succeeded(), QUEUE, NOW) == Ack()


@pytest.mark.parametrize(("attempts", "key"), [(None, "100"), (0, "100"), (1, "500"), (2, "500")], ids=str)
def test_a_failure_waits_the_delay_of_that_failure_and_the_last_delay_repeats(attempts, key):
    headers = {} if attempts is None else {"attempts": attempts}
    message = republished(decide(delivery(headers=headers), FAILED, QUEUE, NOW))
    assert (message.exchange, message.routing_key) == ("app:emails.retry", key)
    assert message.properties.headers["attempts"] == (attempts or 0) + 1


def test_the_failure_that_reaches_max_attempts_is_dead_and_says_why():
    plan = decide(delivery(headers={"attempts": 3, "tenant": "blue"}), FAILED, QUEUE, NOW)
    message = republished(plan)
    assert plan.step == "dead"
    assert (message.exchange, message.routing_key) == ("app:emails.retry", "dead")
    assert message.properties.headers == {
        "tenant": "blue",
        "attempts": 4,
        "x_original_queue": "app:emails",
        "x_dead_letter_reason": "max_attempts",
        "x_dead_letter_time": 1_700_000_000,
        "x_error": "no route to host",
        "x_error_kind": "Unavailable",
    }


def test_a_redriven_dead_letter_still_runs_once_and_is_dead_at_its_next_failure():
    message = republished(decide(delivery(headers={"attempts": 9}), FAILED, QUEUE, NOW))
    assert message.routing_key == "dead"
    assert message.properties.headers["attempts"] == 10


def test_an_undecodable_body_is_dead_at_once_and_counts_no_attempt():
    plan = decide(delivery(body=b"{"), Poison("decode_error", "the body is not JSON"), QUEUE, NOW)
    headers = republished(plan).properties.headers
    assert plan.step == "dead"
    assert headers["x_dead_letter_reason"] == "decode_error"
    assert headers["attempts"] == 0


def test_body_id_properties_and_foreign_headers_travel_unchanged():
    original = delivery(
        body=b"\x00\xff",
        headers={"tenant": "blue", "n": 3, "sqs.group": "g", "schema": {"v": [1, None]}},
        content_type="application/msgpack",
        content_encoding="gzip",
        correlation_id="c",
        reply_to="r",
        type="t",
        app_id="a",
        timestamp=5,
        priority=7,
        delivery_mode=2,
    )
    message = republished(decide(original, FAILED, QUEUE, NOW))
    assert message.body == b"\x00\xff"
    assert message.properties == Properties(
        headers={**original.properties.headers, "attempts": 1},
        message_id="m-1",
        content_type="application/msgpack",
        content_encoding="gzip",
        correlation_id="c",
        reply_to="r",
        type="t",
        app_id="a",
        timestamp=5,
        priority=7,
        delivery_mode=2,
    )
    assert "attempts" not in original.properties.headers


def test_headers_that_belong_to_the_broker_or_route_on_their_own_are_dropped():
    theirs = {
        "x-death": [{"count": 1}],
        "x-first-death-queue": "q",
        "x-last-death-reason": "expired",
        "x-delivery-count": 2,
        "x-acquired-count": 2,
        "CC": ["elsewhere"],
        "BCC": ["elsewhere"],
    }
    message = republished(decide(delivery(headers={**theirs, "mine": 1}), FAILED, QUEUE, NOW))
    assert message.properties.headers == {"mine": 1, "attempts": 1}


@pytest.mark.parametrize("outcome", [FAILED, Poison("decode_error", "no")])
def test_expiration_neither_shortens_a_delay_nor_destroys_a_dead_letter_and_is_not_forgotten(outcome):
    message = republished(decide(delivery(expiration="50"), outcome, QUEUE, NOW))
    assert message.properties.expiration is None
    assert original_expiration(message.properties) == "50"
    again = Delivery(queue="app:emails", tag=2, body=b"", properties=message.properties)
    assert original_expiration(republished(decide(again, FAILED, QUEUE, NOW)).properties) == "50"


def test_a_user_id_that_the_broker_would_refuse_moves_to_a_header():
    properties = republished(decide(delivery(user_id="someone"), FAILED, QUEUE, NOW)).properties
    assert properties.user_id is None
    assert properties.headers["x_user_id"] == "someone"


@pytest.mark.parametrize("value", ["3", -3, True, 2.5, None, [4]])
def test_an_attempts_header_that_is_no_count_counts_as_zero(value):
    message = republished(decide(delivery(headers={"attempts": value}), FAILED, QUEUE, NOW))
    assert message.properties.headers["attempts"] == 1


def test_an_error_text_is_bounded_and_always_valid_utf8():
    message = republished(decide(delivery(), Poison("x", "ä\udcff" * 5000, "k" * 500), QUEUE, NOW))
    headers = message.properties.headers
    assert len(headers["x_error"]) == 1000
    assert len(headers["x_error_kind"]) == 100
    headers["x_error"].encode()


def test_handing_back_requeues_at_once_and_counts_nothing():
    assert decide(delivery(headers={"attempts": 2}), HandedBack(), QUEUE, NOW) == Requeue()


def test_a_suspect_is_handed_back_as_a_new_message_so_that_it_does_not_look_like_a_killer():
    plan = decide(delivery(headers={"x_suspect": True, "attempts": 2}), HandedBack(), QUEUE, NOW)
    assert plan.step == "suspect"
    assert republished(plan).properties.headers == {"x_suspect": True, "attempts": 2}


@pytest.mark.parametrize("outcome", [FAILED, Poison("decode_error", "no")])
@pytest.mark.parametrize(("returns", "pause"), [(0, 0.1), (1, 0.5), (7, 0.5)])
def test_on_an_observed_queue_a_failure_is_requeued_after_its_delay(outcome, returns, pause):
    headers = {"x-delivery-count": returns} if returns else {}
    assert decide(delivery(headers=headers), outcome, OBSERVED, NOW) == Requeue(pause=pause)


@pytest.mark.parametrize("returns", [0, 1, 3])
def test_up_to_three_returns_a_message_is_innocent(returns):
    message = delivery(redelivered=True, headers={"x-delivery-count": returns})
    assert triage(message, QUEUE, NOW) is Start.SHARED


def test_beyond_three_returns_it_is_a_suspect_without_counting_an_attempt():
    plan = triage(delivery(redelivered=True, headers={"x-delivery-count": 4, "attempts": 1}), QUEUE, NOW)
    message = republished(plan)
    assert plan.step == "suspect"
    assert message.routing_key == "100"
    assert message.properties.headers == {"x_suspect": True, "attempts": 1}


def test_a_suspect_runs_alone():
    assert triage(delivery(headers={"x_suspect": True}), QUEUE, NOW) is Start.ALONE


def test_a_suspect_that_comes_back_redelivered_counts_one_attempt_and_stays_a_suspect():
    plan = triage(delivery(redelivered=True, headers={"x_suspect": True, "attempts": 1}), QUEUE, NOW)
    assert plan.step == "retry"
    assert republished(plan).routing_key == "500"
    assert republished(plan).properties.headers == {"x_suspect": True, "attempts": 2}


def test_a_suspect_that_killed_its_last_attempt_is_dead_with_time_and_error():
    plan = triage(delivery(redelivered=True, headers={"x_suspect": True, "attempts": 3}), QUEUE, NOW)
    headers = republished(plan).properties.headers
    assert plan.step == "dead"
    assert headers["x_error_kind"] == "Crashed"
    assert headers["x_dead_letter_time"] == 1_700_000_000
    assert "x_suspect" not in headers


def test_a_suspect_whose_run_ended_in_a_failure_did_not_kill_and_is_one_no_more():
    message = republished(decide(delivery(headers={"x_suspect": True}), FAILED, QUEUE, NOW))
    assert message.properties.headers == {"attempts": 1}


def test_an_observed_queue_has_no_suspects_for_there_is_nowhere_to_send_them():
    message = delivery(redelivered=True, headers={"x-delivery-count": 40})
    assert triage(message, OBSERVED, NOW) is Start.SHARED
