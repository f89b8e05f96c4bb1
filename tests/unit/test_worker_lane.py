"""A lane alone: real threads, slots that do what the test says, and nobody settling."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest

from harness.waiting import eventually
from lunaq_runtime.lua.requests import SUCCEEDED, Finished, Publish, Sleep
from lunaq_runtime.message import Delivery, Properties
from lunaq_runtime.worker import Stepper
from lunaq_runtime.worker.ahead import FIRST_WAITS, MOST_WAITS, Ahead
from lunaq_runtime.worker.lane import LOST, ROUND, Lane

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class FakeSlot:
    """Runs `behave(body)` in the thread."""

    def __init__(self, behave: Callable[[bytes], Any]) -> None:
        self.behave = behave
        self.session: Any = None
        self.delivery: Any = None
        self.started = 0.0
        self.lost = 0
        self.most = 1
        self.decoders: dict[Any, Any] = {}
        self.interruption: Any = None
        self.runs_ahead = False

    def packer(self) -> None:
        return None

    def start(self, session: Any, delivery: Delivery, now: float) -> Any:
        self.session, self.delivery, self.started = session, delivery, now
        return self.behave(delivery.body)

    def resume(self, reply: Any) -> Any:
        return self.behave(reply)

    def release(self, *, state_lost: bool = False) -> None:
        self.lost += state_lost
        self.session = self.delivery = None


class FakeSession:
    """Deliveries of which all but `dead` are alive; it is its own settler."""

    def __init__(self, *bodies: bytes, dead: bytes = b"") -> None:
        self.unstarted = deque(Delivery("q", tag, body, Properties()) for tag, body in enumerate(bodies))
        self.succeeded: deque[Delivery] = deque()
        self.dead = dead
        self.returning = False
        self.handed_back: list[bytes] = []

    @property
    def settler(self) -> Any:
        return self

    def alive(self, delivery: Delivery) -> bool:
        return delivery.body != self.dead

    def hand_back(self, delivery: Delivery) -> None:
        self.handed_back.append(delivery.body)


class Rig:
    """A lane with its session, and what has been collected of it."""

    def __init__(self, stepper: Stepper, session: FakeSession, *behaviours: Callable[[bytes], Any]) -> None:
        self.slots: list[Any] = [FakeSlot(behave) for behave in behaviours]
        self.lane = Lane(asyncio.get_running_loop(), stepper, self.slots, self.collect)
        self.session: Any = session
        self.lane.session = self.session
        self.done: list[bytes] = []
        self.outcomes: list[Any] = []
        self.waiting: list[Delivery] = []

    def collect(self) -> bool:
        published = self.lane.ahead.published
        found = bool(self.session.succeeded or self.lane.outcomes or published)
        while published:
            self.waiting.append(published.popleft()[1])
        while self.session.succeeded:
            self.done.append(self.session.succeeded.popleft().body)
        while self.lane.outcomes:
            self.outcomes.append(self.lane.outcomes.popleft())
        return found

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        async def holds() -> bool:
            return condition()

        await eventually(holds, f"{what}; done: {self.done}, outcomes: {self.outcomes}")


@pytest.fixture
async def impatient() -> AsyncIterator[Stepper]:
    stepper = Stepper(patience=0.02)
    yield stepper
    stepper.close()


@pytest.fixture
async def stepper() -> AsyncIterator[Stepper]:
    """Threads that never lose patience, however busy the machine is."""
    stepper = Stepper(patience=600.0)
    yield stepper
    stepper.close()


NOBODY_IS_WAITED_FOR = property(lambda _stepper: False)


def succeed(_body: bytes) -> Any:
    return SUCCEEDED


async def test_the_loop_waits_for_short_handlers_and_needs_no_waking(
    stepper: Stepper, monkeypatch: pytest.MonkeyPatch
):
    woken: list[bool] = []
    monkeypatch.setattr("lunaq_runtime.worker.stepper.WAIT", 60.0)
    monkeypatch.setattr("lunaq_runtime.worker.lane.ROUND", 60.0)
    rig = Rig(stepper, FakeSession(*[b"%d" % n for n in range(500)]), succeed, succeed)
    monkeypatch.setattr(rig.lane, "_call", lambda: woken.append(True))
    rig.lane.schedule()
    await asyncio.sleep(0)
    assert (len(rig.done), woken) == (500, [])


async def test_a_round_ends_where_others_want_the_loop_and_the_rest_has_another(stepper: Stepper):
    turns = 0

    def take_long(_body: bytes) -> Any:
        time.sleep(ROUND)
        return SUCCEEDED

    rig = Rig(stepper, FakeSession(b"1", b"2", b"3"), take_long)
    rig.lane.schedule()
    while len(rig.done) < 3:
        turns += 1
        await asyncio.sleep(0)
    assert turns >= 3
    assert rig.done == [b"1", b"2", b"3"]


async def test_who_takes_long_is_not_waited_for_and_after_that_nobody_for_a_while(
    stepper: Stepper, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        "lunaq_runtime.worker.stepper.ALONE", 2.0
    )  # for a machine that stands still meanwhile
    go_on = threading.Event()

    def take_long(_body: bytes) -> Any:
        assert go_on.wait(60)
        return SUCCEEDED

    rig = Rig(stepper, FakeSession(b"1", b"2"), take_long, take_long)
    assert stepper.patient
    rig.lane.schedule()
    await asyncio.sleep(0)
    assert (rig.done, stepper.patient) == ([], False)  # and only the loop can let the handler go on
    go_on.set()
    await rig.until(lambda: len(rig.done) == 2, "both to be done")
    await rig.until(lambda: stepper.patient, "it to wait again")


async def test_what_waits_behind_a_stuck_step_goes_on_where_nobody_is_waited_for(
    impatient: Stepper, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Stepper, "patient", NOBODY_IS_WAITED_FOR)
    go_on = threading.Event()

    def behave(body: bytes) -> Any:
        assert body != b"stuck" or go_on.wait(60)
        return SUCCEEDED

    rig = Rig(impatient, FakeSession(b"stuck", b"1", b"2"), behave, behave)
    rig.lane.schedule()
    await rig.until(lambda: rig.done == [b"1", b"2"], "the others to be done")
    go_on.set()
    await rig.until(lambda: len(rig.done) == 3, "all to be done")


async def test_deliveries_run_in_order_and_in_one_thread(stepper: Stepper):
    threads = set()

    def note(_body: bytes) -> Any:
        threads.add(threading.get_ident())
        return SUCCEEDED

    bodies = [b"%d" % n for n in range(500)]
    rig = Rig(stepper, FakeSession(*bodies), note, note)
    rig.lane.schedule()
    await rig.until(lambda: len(rig.done) == 500, "all to be done")
    assert rig.done == bodies
    assert (len(threads), stepper.threads) == (1, 1)
    assert sum(times for times, _ in rig.lane.spent) == 500


@pytest.mark.parametrize("patient", [True, False])
async def test_an_outcome_is_collected_while_the_next_step_is_still_running(
    stepper: Stepper, monkeypatch: pytest.MonkeyPatch, *, patient: bool
):
    if not patient:
        monkeypatch.setattr(Stepper, "patient", NOBODY_IS_WAITED_FOR)
    release = threading.Event()

    def behave(body: bytes) -> Any:
        if body == b"slow":
            release.wait(60)
        return SUCCEEDED

    rig = Rig(stepper, FakeSession(b"0", b"1", b"2", b"slow", b"3"), behave)
    rig.lane.schedule()
    try:
        await rig.until(lambda: len(rig.done) == 3, "those before the slow one")
        assert rig.done == [b"0", b"1", b"2"]
    finally:
        release.set()
    await rig.until(lambda: rig.done[3:] == [b"slow", b"3"], "the rest")


async def test_a_consumer_with_much_to_do_does_not_keep_another_waiting(stepper: Stepper):
    def slow(_body: bytes) -> Any:
        time.sleep(0.001)
        return SUCCEEDED

    busy = Rig(stepper, FakeSession(*[b"x"] * 1000), slow)
    busy.lane.schedule()
    await busy.until(lambda: bool(busy.done), "the busy one to begin")
    other = Rig(stepper, FakeSession(b"y"), succeed)
    other.lane.schedule()
    await other.until(lambda: bool(other.done), "the other one's turn")
    assert busy.session.unstarted
    assert stepper.threads == 1


async def test_what_comes_behind_a_stuck_step_goes_through_a_free_slot_in_another_thread(impatient: Stepper):
    release = threading.Event()

    def behave(body: bytes) -> Any:
        if body == b"stuck":
            release.wait(60)
        return SUCCEEDED

    rig = Rig(impatient, FakeSession(b"stuck", *[b"x"] * 50), behave, behave)
    rig.lane.schedule()
    try:
        await rig.until(lambda: len(rig.done) == 50, "the others")
        rig.session.unstarted.append(Delivery("q", 99, b"later", Properties()))
        rig.lane.schedule()
        await rig.until(lambda: b"later" in rig.done, "one that came later")
        assert impatient.threads >= 2
    finally:
        release.set()
    await rig.until(lambda: b"stuck" in rig.done and impatient.threads == 1, "the late thread to retire")
    assert len(rig.done) == 52


async def test_a_slot_that_waits_for_a_reply_leaves_the_others_going_and_is_resumed(stepper: Stepper):
    def behave(body: bytes) -> Any:
        return Sleep(1.0) if body == b"asks" else SUCCEEDED

    rig = Rig(stepper, FakeSession(b"asks", b"1", b"2"), behave, behave)
    rig.lane.schedule()
    await rig.until(lambda: len(rig.done) == 2, "the others")
    [(slot, _, delivery, request)] = rig.outcomes
    assert (delivery.body, request) == (b"asks", Sleep(1.0))
    rig.lane.resume(slot, (True,))
    await rig.until(lambda: rig.done[2:] == [b"asks"], "it to go on")


async def test_a_delivery_of_a_lost_connection_does_not_run(stepper: Stepper):
    rig = Rig(stepper, FakeSession(b"1", b"gone", b"2", dead=b"gone"), succeed)
    rig.lane.schedule()
    await rig.until(lambda: len(rig.done) == 2 and bool(rig.outcomes), "all")
    assert [outcome[3] for outcome in rig.outcomes] == [LOST]
    assert rig.done == [b"1", b"2"]


async def test_a_defect_costs_one_delivery_and_the_state_it_ran_in(stepper: Stepper):
    def behave(body: bytes) -> Any:
        if body == b"bad":
            raise ValueError("a defect")
        return SUCCEEDED

    rig = Rig(stepper, FakeSession(b"1", b"bad", b"2"), behave)
    rig.lane.schedule()
    await rig.until(lambda: len(rig.done) == 2 and bool(rig.outcomes), "all")
    assert isinstance(rig.outcomes[0][3], ValueError)
    assert rig.slots[0].lost == 1


async def test_a_slot_whose_reply_came_starts_the_next_delivery_itself(stepper: Stepper):
    started: list[tuple[str, bytes]] = []

    def named(name: str) -> Callable[[bytes], Any]:
        def behave(body: bytes) -> Any:
            started.append((name, body))
            return SUCCEEDED if body == b"reply" else Sleep(1)

        return behave

    rig = Rig(stepper, FakeSession(b"0", b"1"), named("first"), named("second"))
    rig.lane.schedule()
    await rig.until(lambda: len(rig.outcomes) == 2, "both to wait")
    rig.session.unstarted.extend(FakeSession(b"2", b"3").unstarted)
    for slot in rig.slots:
        rig.lane.resume(slot, b"reply")  # type: ignore[arg-type]
    await rig.until(lambda: len(started) == 6, "the next two")
    assert started[2:] == [
        ("first", b"reply"),
        ("first", b"2"),
        ("second", b"reply"),
        ("second", b"3"),
    ]


LAST = Publish("app:out", {}, {}, SUCCEEDED)


def go_ahead(_body: Any) -> Publish:
    return LAST


async def test_those_that_wait_for_confirms_are_in_no_slot(stepper: Stepper):
    rig = Rig(stepper, FakeSession(*[b"x"] * 20), go_ahead, go_ahead)
    rig.lane.schedule()
    await rig.until(lambda: len(rig.waiting) == 20, "all to wait for their confirms")
    assert [slot.delivery for slot in rig.slots] == [None, None]


async def test_one_slot_alone_waits_for_the_confirm_for_the_order_of_messages(stepper: Stepper):
    rig = Rig(stepper, FakeSession(b"1", b"2"), go_ahead)
    rig.lane.schedule()
    for body in (b"1", b"2"):
        await rig.until(lambda: bool(rig.waiting), "one to wait for its confirm")
        waiting = rig.waiting.pop()
        assert (waiting.body, len(rig.lane.ahead.published)) == (body, 0)
        await one_round(rig)
        assert not rig.waiting
        rig.lane.confirmed(rig.session, waiting, 0.0)
    await rig.until(lambda: rig.done == [b"1", b"2"], "both")


async def one_round(rig: Rig) -> None:
    """Let the lane do whatever it can."""
    rig.lane.schedule()
    await rig.lane._stepper.call(lambda: None)
    rig.collect()


async def test_a_state_that_is_lost_ahead_of_a_confirm_is_not_used_again(stepper: Stepper):
    lost = Publish("app:out", {}, {}, Finished(state_lost=True))
    rig = Rig(stepper, FakeSession(b"1"), lambda _body: lost, succeed)
    rig.lane.schedule()
    await rig.until(lambda: len(rig.waiting) == 1, "it to wait for its confirm")
    assert rig.slots[0].lost == 1


@pytest.mark.parametrize("patient", [True, False])
async def test_what_is_confirmed_is_done_while_a_thread_is_in_a_slow_step(
    stepper: Stepper, monkeypatch: pytest.MonkeyPatch, *, patient: bool
):
    if not patient:
        monkeypatch.setattr(Stepper, "patient", NOBODY_IS_WAITED_FOR)
    release, slow = threading.Event(), threading.Event()

    def behave(body: bytes) -> Any:
        if body == b"slow":
            slow.set()
            release.wait(60)
            return SUCCEEDED
        return LAST

    rig = Rig(stepper, FakeSession(b"1"), behave, behave)
    rig.lane.schedule()
    await rig.until(lambda: len(rig.waiting) == 1, "it to wait for its confirm")
    rig.session.unstarted.extend(FakeSession(b"slow").unstarted)
    rig.lane.schedule()
    try:
        await rig.until(slow.is_set, "the slow one to begin")
        rig.lane.confirmed(rig.session, rig.waiting[0], 0.0)
        await rig.until(lambda: rig.done == [b"1"], "the confirmed one")
    finally:
        release.set()
    await rig.until(lambda: rig.done == [b"1", b"slow"], "the slow one")


async def test_confirms_that_come_together_are_collected_at_once(stepper: Stepper):
    rig = Rig(stepper, FakeSession(*[b"x"] * 50), go_ahead, go_ahead)
    rig.lane.schedule()
    await rig.until(lambda: len(rig.waiting) == 50, "all to wait for their confirms")
    looks: list[int] = []
    collect = rig.collect

    def counted() -> bool:
        looks.append(len(rig.session.succeeded))
        return collect()

    rig.lane._collect = counted
    for delivery in rig.waiting:
        rig.lane.confirmed(rig.session, delivery, 0.0)
    await rig.until(lambda: len(rig.done) == 50, "all to be done")
    assert looks[0] == 50


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("alive", [True, False])
async def test_a_void_run_begins_anew_and_waits_unless_its_delivery_is_gone(
    stepper: Stepper, *, alive: bool, slots: int
):
    ran: list[bool] = []

    def behave(_body: Any) -> Any:
        ran.append(rig.slots[0].runs_ahead)
        return LAST if rig.slots[0].runs_ahead else SUCCEEDED

    rig = Rig(stepper, FakeSession(b"1"), *[behave] * slots)
    rig.lane.schedule()
    await rig.until(lambda: len(rig.waiting) == 1, "it to wait for its confirm")
    rig.session.dead = b"" if alive else b"1"
    rig.lane.begin_anew(rig.session, rig.waiting[0])
    if alive:
        await rig.until(lambda: rig.done == [b"1"], "it to succeed")
        assert ran == [True, False]
    else:
        await rig.until(lambda: len(rig.outcomes) == 1, "it to be dropped")
        assert (rig.outcomes[0][3], ran) == (LOST, [True])


async def test_a_void_run_is_handed_back_where_nothing_more_is_to_start(stepper: Stepper):
    rig = Rig(stepper, FakeSession(b"1"), go_ahead)
    rig.lane.schedule()
    await rig.until(lambda: len(rig.waiting) == 1, "it to wait for its confirm")
    rig.session.returning = True
    rig.lane.begin_anew(rig.session, rig.waiting[0])
    assert (rig.session.handed_back, list(rig.session.unstarted)) == ([b"1"], [])


def test_void_runs_make_the_next_ones_wait_twice_as_long_each_time_until_a_confirm():
    ahead = Ahead()

    def waits() -> int:
        return next((count for count in range(MOST_WAITS * 2) if ahead.may()), -1)

    assert waits() == 0
    for expected in (FIRST_WAITS, 2 * FIRST_WAITS):
        ahead.was_void()
        assert waits() == expected
    for _ in range(20):
        ahead.was_void()
    assert waits() == MOST_WAITS
    ahead.was_confirmed()
    ahead.was_void()
    assert waits() == FIRST_WAITS


def test_no_run_goes_ahead_while_as_much_is_on_its_way_as_may_be():
    ahead = Ahead()
    ahead.crowded = True
    assert not ahead.may()
    ahead.crowded = False
    assert ahead.may()
