"""Runs that went ahead of their last publish, on the event loop: a lane and requests that only take notes."""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from lunaq_runtime.lua.errors import HandlerError
from lunaq_runtime.lua.requests import PUBLISHED, SUCCEEDED, Finished, Publish
from lunaq_runtime.message import Delivery, Properties
from lunaq_runtime.worker.ahead import Ahead
from lunaq_runtime.worker.confirms import Confirms

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT = 10.0
INTERRUPTED = HandlerError("interrupted")


class Rig:
    """Confirms with what they published (an answer each), what ended, and when they are to look again."""

    def __init__(self) -> None:
        self.ahead = Ahead()
        self.spent: deque[tuple[int, float]] = deque()
        self.on_their_way = 0
        self.answers: list[Callable[[Any], None]] = []
        self.ended: list[tuple[bytes, Any]] = []
        self.looks: list[float] = []
        lane: Any = self
        self.confirms = Confirms(lane, lane, TIMEOUT, self.end, self.looks.append)

    def publish_soon(self, _publish: Publish, answer: Callable[[Any], None]) -> None:
        self.answers.append(answer)

    def end(self, _session: Any, delivery: Delivery, finished: Finished) -> None:
        self.ended.append((delivery.body, finished.error))

    def confirmed(self, _session: Any, delivery: Delivery, _started: float) -> None:
        self.ended.append((delivery.body, "confirmed"))

    def begin_anew(self, _session: Any, delivery: Delivery) -> None:
        self.ended.append((delivery.body, "begins anew"))

    def go_on(self) -> None:
        pass

    def ran(self, body: bytes, started: float = 0.0, ended: Finished = SUCCEEDED) -> None:
        """Leave what a thread leaves of a run that went ahead."""
        session: Any = None
        delivery = Delivery("q", 1, body, Properties())
        self.ahead.published.append((session, delivery, started, Publish("app:out", {}, {}, ended)))


@pytest.mark.parametrize("reply", [PUBLISHED, (None, HandlerError("no"))])
def test_an_interrupted_run_ends_by_that_though_its_answer_comes(reply: Any):
    rig = Rig()
    rig.ran(b"1")
    rig.confirms.publish(None)
    rig.confirms.interrupt(INTERRUPTED)
    rig.answers[0](reply)
    assert (rig.ended, len(rig.confirms)) == ([(b"1", INTERRUPTED)], 0)


def test_what_a_run_went_ahead_of_is_not_published_once_all_are_interrupted():
    rig = Rig()
    rig.ran(b"1")
    assert rig.confirms.publish(INTERRUPTED)
    assert (rig.ended, rig.answers) == ([(b"1", INTERRUPTED)], [])


def test_those_whose_time_is_up_have_failed_and_the_next_one_is_looked_at_in_time():
    rig = Rig()
    now = monotonic()
    rig.ran(b"late", now - TIMEOUT)
    rig.ran(b"in time", now)
    rig.confirms.publish(None)
    assert min(rig.looks) == now
    assert rig.confirms.expire(now) == now + TIMEOUT
    assert [(body, error.kind_value) for body, error in rig.ended] == [(b"late", "Timeout")]
    for answer in rig.answers:
        answer(PUBLISHED)
    assert rig.ended[1:] == [(b"in time", "confirmed")]


def test_the_end_that_a_run_came_to_holds_once_its_publish_is_confirmed():
    rig = Rig()
    failure = HandlerError("after the publish")
    rig.ran(b"1", ended=Finished(failure))
    rig.confirms.publish(None)
    assert (rig.ended, len(rig.confirms)) == ([], 1)
    rig.answers[0](PUBLISHED)
    assert (rig.ended, len(rig.spent)) == ([(b"1", failure)], 1)
