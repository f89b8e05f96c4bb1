"""A lane alone: real threads, slots that do what the test says, and nobody settling."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest

from harness.waiting import eventually
from lunaq_runtime.lua.errors import HandlerError
from lunaq_runtime.lua.requests import PUBLISHED, SUCCEEDED, Finished, Publish, Sleep, Void
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
        self.state: Any = None
        self.ended: Any = None

    def prepare(self, spare: list[Any], *, runs_ahead: bool) -> None:
        self.runs_ahead = runs_ahead
        if self.state is None and spare:
            self.state = spare.pop()

    def wait(self, session: Any, delivery: Delivery, started: float, ended: Finished) -> None:
        self.session, self.delivery, self.started, self.ended = session, delivery, started, ended

    def leave_state(self, ended: Finished, spare: list[Any]) -> None:
        self.ended = ended
        if not ended.state_lost:
            spare.append(self.state)
        self.state = None

    def packer(self) -> None:
        return None

    def start(self, session: Any, delivery: Delivery, now: float) -> Any:
        self.session, self.delivery, self.started = session, delivery, now
        return self.behave(delivery.body)

    def resume(self, reply: Any) -> Any:
        return self.behave(reply)

    def release(self, *, state_lost: bool = False) -> None:
        self.lost += state_lost
        self.session = self.delivery = self.ended = None


class FakeSession:
    """Deliveries of which all but `dead` are alive; it is its own settler."""

    def __init__(self, *bodies: bytes, dead: bytes = b"") -> None:
        self.unstarted = deque(Delivery("q", tag, body, Properties()) for tag, body in enumerate(bodies))
        self.succeeded: deque[Delivery] = deque()
        self.dead = dead

    @property
    def settler(self) -> Any:
        return self

    def alive(self, delivery: Delivery) -> bool:
        return delivery.body != self.dead


class Rig:
    """A lane with its session, and what has been collected of it."""

    def __init__(self, stepper: Stepper, session: FakeSession, *behaviours: Callable[[bytes], Any]) -> None:
        self.slots: list[Any] = [FakeSlot(behave) for behave in behaviours]
        self.lane = Lane(asyncio.get_running_loop(), stepper, self.slots, self.collect)
        self.session: Any = session
        self.lane.session = self.session
        self.done: list[bytes] = []
        self.outcomes: list[Any] = []

    def collect(self) -> bool:
        found = bool(self.session.succeeded or self.lane.outcomes)
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
REFUSED = (None, HandlerError("no"))


def went_ahead(answer: Any) -> Any:
    return answer if isinstance(answer, Finished) else SUCCEEDED if answer is PUBLISHED else LAST


async def test_those_that_wait_for_confirms_leave_the_state_to_the_next_one(stepper: Stepper):
    rig = Rig(stepper, FakeSession(b"1", b"2"), went_ahead, went_ahead)
    first, second = rig.slots
    first.state = "the state"
    rig.lane.schedule()
    await rig.until(lambda: len(rig.outcomes) == 2, "both to wait for their confirms")
    # The first one waits where no state is needed, the second one has no other place.
    assert [(slot, delivery.body) for slot, _, delivery, _ in rig.outcomes] == [(second, b"1"), (first, b"2")]
    assert (first.state, second.state) == (None, None)
    rig.session.unstarted.extend(FakeSession(b"3").unstarted)
    rig.lane.confirm(second, PUBLISHED)
    await rig.until(lambda: len(rig.outcomes) == 3, "the third")
    assert rig.done == [b"1"]
    assert rig.outcomes[2][0] is second


async def test_a_state_that_is_lost_is_left_to_nobody(stepper: Stepper):
    lost = Publish("app:out", {}, {}, Finished(state_lost=True))
    rig = Rig(stepper, FakeSession(b"1"), lambda _body: lost)
    rig.slots[0].state = "the state"
    rig.lane.schedule()
    await rig.until(lambda: len(rig.outcomes) == 1, "it to wait for its confirm")
    rig.lane.ahead.prepare(rig.slots[0])
    assert rig.slots[0].state is None


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
        return went_ahead(body)

    rig = Rig(stepper, FakeSession(b"1"), behave, behave)
    rig.lane.schedule()
    await rig.until(lambda: len(rig.outcomes) == 1, "it to wait for its confirm")
    rig.session.unstarted.extend(FakeSession(b"slow").unstarted)
    rig.lane.schedule()
    try:
        await rig.until(slow.is_set, "the slow one to begin")
        rig.lane.confirm(rig.outcomes[0][0], PUBLISHED)
        await rig.until(lambda: rig.done == [b"1"], "the confirmed one")
    finally:
        release.set()
    await rig.until(lambda: rig.done == [b"1", b"slow"], "the slow one")


async def test_confirms_that_come_together_are_collected_at_once(stepper: Stepper):
    rig = Rig(stepper, FakeSession(*[b"x"] * 50), *[went_ahead] * 50)
    rig.lane.schedule()
    await rig.until(lambda: len(rig.outcomes) == 50, "all to wait for their confirms")
    looks: list[int] = []
    collect = rig.collect

    def counted() -> bool:
        looks.append(len(rig.session.succeeded))
        return collect()

    rig.lane._collect = counted
    for slot, *_ in list(rig.outcomes):
        rig.lane.confirm(slot, PUBLISHED)
    await rig.until(lambda: len(rig.done) == 50, "all to be done")
    assert looks[0] == 50


@pytest.mark.parametrize("alive", [True, False])
async def test_a_void_run_begins_anew_and_waits_unless_its_delivery_is_gone(stepper: Stepper, *, alive: bool):
    slots: list[Any] = []
    ran: list[bool] = []

    def behave(body: Any) -> Any:
        if body is REFUSED:
            rig.session.dead = b"" if alive else b"1"
            return Void()
        ran.append(slots[0].runs_ahead)
        return LAST if slots[0].runs_ahead else SUCCEEDED

    rig = Rig(stepper, FakeSession(b"1"), behave)
    slots += rig.slots
    rig.lane.schedule()
    await rig.until(lambda: len(rig.outcomes) == 1, "it to wait for its confirm")
    rig.lane.confirm(rig.slots[0], REFUSED)
    if alive:
        await rig.until(lambda: rig.done == [b"1"], "it to succeed")
        assert ran == [True, False]
    else:
        await rig.until(lambda: len(rig.outcomes) == 2, "it to be dropped")
        assert (rig.outcomes[1][3], ran) == (LOST, [True])


async def test_an_interrupted_run_ends_by_that_though_its_confirm_came(stepper: Stepper):
    interrupted = HandlerError("interrupted")

    def behave(body: Any) -> Any:
        return Finished(interrupted) if body is PUBLISHED and rig.slots[0].interruption else went_ahead(body)

    rig = Rig(stepper, FakeSession(b"1"), behave)
    rig.lane.schedule()
    await rig.until(lambda: len(rig.outcomes) == 1, "it to wait for its confirm")
    rig.slots[0].interruption = interrupted
    rig.lane.confirm(rig.slots[0], PUBLISHED)
    await rig.until(lambda: len(rig.outcomes) == 2, "its end")
    assert rig.outcomes[1][3].error is interrupted


def test_void_runs_make_the_next_ones_wait_twice_as_long_each_time_until_a_confirm():
    ahead, slot = Ahead(), FakeSlot(succeed)

    def waits() -> int:
        for count in range(MOST_WAITS * 2):
            ahead.prepare(slot)  # type: ignore[arg-type]
            if slot.runs_ahead:
                return count
        return -1

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
