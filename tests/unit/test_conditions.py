"""Conditions change only when something changed."""

import re

import pytest

from lunaq_operator import conditions
from lunaq_operator.conditions import Reason, set_condition, set_ready

OLD, NOW = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def ready(status="True", reason="Available", message="", generation=1, at=OLD):
    return {
        "type": "Ready",
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": generation,
        "lastTransitionTime": at,
    }


def test_nothing_changed_gives_an_equal_list():
    before = [ready()]
    assert set_condition(before, "Ready", "True", "Available", "", 1, NOW) == before


def test_a_new_list_is_returned_and_the_old_one_left_alone():
    before = [ready()]
    after = set_condition(before, "Ready", "False", "Conflict", "x", 2, NOW)
    assert before == [ready()]
    assert after == [ready("False", "Conflict", "x", 2, NOW)]


def test_the_transition_time_moves_only_with_the_status():
    after = set_condition([ready()], "Ready", "True", "Suspended", "y", 2, NOW)
    assert after == [ready("True", "Suspended", "y", 2, OLD)]


def test_a_new_type_goes_to_the_end_and_order_is_kept():
    after = set_condition([ready()], "Stalled", "False", "Available", "", 1, NOW)
    assert [c["type"] for c in after] == ["Ready", "Stalled"]
    again = set_condition(after, "Ready", "False", "Conflict", "", 1, NOW)
    assert [c["type"] for c in again] == ["Ready", "Stalled"]


def test_a_message_is_cut_to_what_the_schema_takes():
    after = set_condition([], "Ready", "False", "Failed", "x" * 40_000, 1, NOW)
    assert len(after[0]["message"]) == 32768


@pytest.mark.parametrize(
    ("status", "reason", "stalled"),
    [
        ("True", Reason.AVAILABLE, "False"),
        ("False", Reason.PROGRESSING, "False"),
        ("False", Reason.BROKER_UNREACHABLE, "False"),
        ("False", Reason.NOT_AUTHORIZED, "True"),
        ("False", Reason.SECRET_MISSING, "True"),
    ],
)
def test_only_what_a_user_must_mend_is_stalled(status, reason, stalled):
    after = set_ready([], status, reason, "text", 3, NOW)
    assert conditions.find(after, "Ready")["reason"] == reason
    assert conditions.find(after, "Stalled")["status"] == stalled


def test_a_repeated_ready_changes_nothing():
    first = set_ready([], "False", Reason.CONFLICT, "text", 3, OLD)
    assert set_ready(first, "False", Reason.CONFLICT, "text", 3, NOW) == first


def test_a_reason_is_written_as_a_plain_word():
    after = set_ready([], "False", Reason.NOT_AUTHORIZED, "text", 3, NOW)
    assert type(after[0]["reason"]) is str
    for reason in Reason:
        assert re.fullmatch("[A-Z][A-Za-z]+", reason)


def test_not_authorized_gives_the_command_that_grants_it():
    text = conditions.not_authorized(
        namespace="app", service_account="worker", queue_namespace="mail", queue="emails"
    )
    assert "ServiceAccount app/worker may not consume from mail:emails" in text
    assert "grant it with: kubectl create role lunaq:consume:queues:emails --verb=consume" in text
    assert "--serviceaccount=app:worker" in text
