"""Where the event loop and the Lua threads meet, one lane a consumer: deliveries go in, outcomes come out.

The loop appends to `session.unstarted` and calls `schedule`; a thread that serves the lane takes one after
the other, in whatever slot is free, and does not return to the loop in between.

The two of them share one interpreter, and at each call of Lua the thread lets go of it: a loop that is awake
takes it for some small thing, and both spend more on waking each other than on messages. So the loop waits
for a round of short handlers, and then takes all outcomes at once (measured: 12 to 35 % more messages a
second where each publishes). It does not wait for long: where a handler takes its time, the
loop goes on, and the first outcome wakes it; while more follow it looks by itself every `LOOK_AGAIN` seconds,
so that neither a slow handler holds up the ack of one before it, nor every message costs a wake-up.

All that both sides touch are deques, queues and plain attributes, each operation atomic.
"""

from __future__ import annotations

from collections import deque
from queue import SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any

from lunaq_runtime.lua.requests import SUCCEEDED, Finished, Publish, Void
from lunaq_runtime.lua.state import NoRoomError
from lunaq_runtime.retry import Poison
from lunaq_runtime.worker.ahead import Ahead
from lunaq_runtime.worker.batch import LONGEST, MOST, Batch

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from lunaq_runtime.lua.errors import HandlerError
    from lunaq_runtime.lua.requests import Request
    from lunaq_runtime.message import Delivery
    from lunaq_runtime.worker.session import Session
    from lunaq_runtime.worker.slot import Slot
    from lunaq_runtime.worker.stepper import LuaThread, Stepper

    Outcome = Request | Finished | Void | Poison | Exception | object
    """What a step in a slot comes to; an Exception is a defect of ours, an object is `LOST`."""
    Reply = tuple[Any, ...] | HandlerError

LOST = object()
"""The outcome of a delivery whose connection was gone before its turn: it was not started."""

LOOK_AGAIN = 0.001
"""Seconds between two looks of the loop at a lane that is producing outcomes."""

TURN = 0.005
"""Seconds after which a thread lets the next consumer have its turn."""

ROUND = 0.001
"""Seconds after which a thread lets the loop have its turn, where the loop waits for it."""


class Lane:
    """One consumer's deliveries on their way through its slots.

    `collect` is called on the loop when there are outcomes to take by `outcomes`, or successes in the
    session, and tells whether it found any. `spent` says of finished runs how many took how many
    seconds.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        stepper: Stepper,
        slots: list[Slot],
        collect: Callable[[], bool],
    ) -> None:
        self.session: Session | None = None
        self.outcomes: deque[tuple[Slot, Session, Delivery, Outcome]] = deque()
        self.spent: deque[tuple[int, float]] = deque()
        self.ahead = Ahead()
        self._loop = loop
        self._stepper = stepper
        self._idle = deque(reversed(slots))  # the one used last is taken first: its memory is in the caches
        self._only = slots[0] if len(slots) == 1 else None
        self._resumable: deque[tuple[Slot, Reply]] = deque()
        self._collect = collect
        self._queued = False
        self._looking = False  # a call on the loop that takes outcomes is due
        self._awaited = False  # the loop waits for the round
        self._rounds: SimpleQueue[None] = SimpleQueue()  # those that have ended
        self._closed = False
        self._awake = False  # the loop has been told, or looks by itself
        self._called = False  # and that call has not been made yet
        self._look: asyncio.TimerHandle | None = None

    # On the loop ----------------------------------------------------------------------------------------

    def schedule(self) -> None:
        """See to it that a thread serves what there is to do."""
        if not self._queued and self._serviceable():
            self._queued = self._looking = True
            # Later, so that a round has all that this turn of the loop brings.
            self._loop.call_soon(self._begin_round)

    def resume(self, slot: Slot, reply: Reply) -> None:
        """Let a slot go on that waited for a reply; an error ends its run."""
        self._resumable.append((slot, reply))
        if not self._queued:
            self.schedule()

    def confirmed(self, session: Session, delivery: Delivery, started: float) -> None:
        """Take a success whose run went ahead of a publish that is confirmed by now."""
        self.spent.append((1, monotonic() - started))
        session.succeeded.append(delivery)
        if not self._looking:
            self._looking = True
            self._loop.call_soon(self.look)  # later, for a chunk's confirms come together
        self.go_on()

    def begin_anew(self, session: Session, delivery: Delivery) -> None:
        """Let a delivery run again whose run went ahead of a publish that was refused; it waits this time."""
        self.ahead.was_void()
        if session.returning:
            session.hand_back(delivery)
        else:
            session.unstarted.appendleft(delivery)
            self.schedule()
        self.go_on()

    def go_on(self) -> None:
        """Go on where a run that went ahead has come to its end: one slot alone has kept the order."""
        if self._only is not None:
            self._idle.append(self._only)
            self.schedule()

    def close(self) -> None:
        """Begin nothing more, and look no more by itself."""
        self._closed = True
        if self._look:
            self._look.cancel()
            self._look = None

    def _begin_round(self) -> None:
        if self._closed:
            return
        stepper, rounds = self._stepper, self._rounds
        self._looking = False
        if not stepper.patient:
            self.look()
            stepper.put(self)
            return
        while not rounds.empty():
            rounds.get()  # of a thread that was late
        self._awaited = self._awake = self._called = True
        stepper.put(self)
        ended = stepper.wait_for(rounds)
        self._awaited = False
        if ended:
            # Cleared first: what a late thread appends from here on is either taken below or calls.
            self._awake = self._called = False
            self._collect()
        else:
            self.look()
        self.schedule()

    def look(self) -> None:
        """Take what outcomes there are, and look again soon if there were any."""
        # Cleared first: what a thread appends from here on is either taken below or calls again.
        self._called = self._looking = False
        if not self._collect():
            self._awake = False
            if not self._collect():
                return
            self._awake = True
        if self._look is None:
            self._look = self._loop.call_later(LOOK_AGAIN, self._look_again)

    def _look_again(self) -> None:
        self._look = None
        self.look()

    # In a thread ----------------------------------------------------------------------------------------

    def serve(self, thread: LuaThread) -> None:
        """Resume what can go on, start what can start, until nothing is left or the turn is over."""
        self._queued = False
        if self._only is None and not self._awaited and self._serviceable():
            # Where this thread does not come back, another one finds the lane in line.
            self._queue_again()
        until = thread.since + (ROUND if self._awaited else TURN)
        while not thread.late:
            if thread.since >= until:
                if self._awaited or self._stepper.waiting:
                    break
                until = thread.since + TURN
            if self._resumable:
                self._resume_one(thread, until)
            elif not self._start_some(thread, until):
                break
        if self._awaited:
            self._rounds.put(None)  # the loop sees to all that is left
            return
        if self._serviceable():
            self._queue_again()
        session = self.session
        if self.outcomes or self.ahead.published or (session and session.succeeded):
            self._call()

    def _serviceable(self) -> bool:
        session = self.session
        return bool(self._resumable or (session and session.unstarted and self._idle))

    def _queue_again(self) -> None:
        if not self._queued:
            self._queued = True
            self._stepper.put_again(self)

    def _resume_one(self, thread: LuaThread, until: float) -> None:
        try:
            slot, reply = self._resumable.popleft()
        except IndexError:
            return
        session, delivery = slot.session, slot.delivery
        if session is None or delivery is None:  # pragma: no cover - only what was started is resumed
            return
        outcome: Outcome
        try:
            outcome = slot.resume(reply)
        except Exception as error:  # noqa: BLE001 - told on the loop
            outcome = error
        thread.since = monotonic()
        if self._over(slot, session, delivery, outcome, thread):
            # The next one in the same slot, whose memory is in the processor's caches now.
            self._start_in(slot, thread, until)

    def _start_some(self, thread: LuaThread, until: float) -> bool:
        """Run deliveries in a slot that is free; false where nothing can be started."""
        session = self.session
        if session is None or not session.unstarted:
            return False
        try:
            slot = self._idle.pop()
        except IndexError:
            return False
        self._start_in(slot, thread, until)
        return True

    def _start_in(self, slot: Slot, thread: LuaThread, until: float) -> None:
        """Run one delivery after the other in one slot, until something else has its turn."""
        session = self.session
        if session is None:
            self._idle.append(slot)
            return
        unstarted = session.unstarted
        slot.runs_ahead = self.ahead.may()
        free = True
        while free and unstarted and not thread.late:
            if slot.most > 1:
                free = self._start_batch(slot, session, thread)
            else:
                free = self._start_one(slot, session, thread)
            if thread.since >= until or self._resumable:
                break
        if free:
            self._idle.append(slot)

    def _start_one(
        self, slot: Slot, session: Session, thread: LuaThread, delivery: Delivery | None = None
    ) -> bool:
        """Run one delivery; false where the slot is still at work on it."""
        if delivery is None:
            try:
                delivery = session.unstarted.popleft()
            except IndexError:
                return True
        began = thread.since
        outcome: Outcome
        try:
            alive = session.settler.alive(delivery)
            outcome = slot.start(session, delivery, began) if alive else LOST
        except Exception as error:  # noqa: BLE001 - told on the loop
            outcome = error
        thread.since = now = monotonic()
        if outcome is SUCCEEDED and now - began < LONGEST / 4:
            slot.most = max(slot.most, 2)
        return self._over(slot, session, delivery, outcome, thread)

    def _start_batch(self, slot: Slot, session: Session, thread: LuaThread) -> bool:
        """Run several deliveries in one call; false where the slot is still at work on one of them."""
        batch = Batch(slot, session, self._done, self._put_back)
        alone = batch.gather(session.unstarted)
        if alone is not None:
            return self._start_one(slot, session, thread, alone)
        deliveries = batch.deliveries
        if not deliveries:
            return True
        if session.settler.all_alive(deliveries):
            return self._run_batch(batch, slot, thread)
        self._put_back(session, deliveries[1:])
        return self._start_one(slot, session, thread, deliveries[0])

    def _run_batch(self, batch: Batch, slot: Slot, thread: LuaThread) -> bool:
        session, deliveries, count = batch.session, batch.deliveries, len(batch.deliveries)
        began = thread.since
        outcome: Outcome
        try:
            outcome = batch.run(began)
        except NoRoomError:
            slot.release()
            slot.most = 1
            self._put_back(session, deliveries)
            return True
        except Exception as error:  # noqa: BLE001 - told on the loop
            # Whichever of them it was: those before it run twice, none is lost.
            slot.release(state_lost=True)
            self.outcomes.extend((slot, session, delivery, error) for delivery in deliveries)
            self._wake()
            return True
        thread.since = now = monotonic()
        if outcome is not SUCCEEDED:
            slot.most = max(1, slot.most // 4)
            return self._over(slot, session, deliveries[0], outcome, thread)
        took = now - began
        if took > LONGEST:
            slot.most = max(1, slot.most // 2)
        elif count == slot.most and took < LONGEST / 2:
            slot.most = min(slot.most * 2, MOST)
        slot.release()
        self._done(session, deliveries, took / count)
        return True

    def _done(self, session: Session, succeeded: list[Delivery], seconds: float) -> None:
        """Take what of a batch has succeeded."""
        self.spent.append((len(succeeded), seconds))
        session.succeeded.extend(succeeded)
        self._wake()

    def _put_back(self, session: Session, waiting: list[Delivery]) -> None:
        """Let wait again, in their order, what of a batch has not started."""
        session.unstarted.extendleft(reversed(waiting))
        if self._serviceable():
            self._queue_again()
        if session.returning:
            self._wake()  # the loop may have handed back all the others by now

    def _over(
        self, slot: Slot, session: Session, delivery: Delivery, outcome: Outcome, thread: LuaThread
    ) -> bool:
        """Take an outcome in a thread, and have the loop look; false where the slot is still at work."""
        if isinstance(outcome, Void):
            self.ahead.was_void()
            slot.release(state_lost=outcome.state_lost)
            slot.runs_ahead = False
            return self._start_one(slot, session, thread, delivery)
        free = self._take(slot, session, delivery, outcome, thread.since)
        if not self._awake:
            self._wake()
        return free

    def _take(self, slot: Slot, session: Session, delivery: Delivery, outcome: Outcome, now: float) -> bool:
        """Leave an outcome for the loop; false where the slot is not free for the next delivery."""
        free = True
        if outcome is SUCCEEDED:
            self.spent.append((1, now - slot.started))
            slot.release()
            session.succeeded.append(delivery)
        elif outcome.__class__ is Publish and outcome.ended is not None:
            slot.release(state_lost=outcome.ended.state_lost)
            self.ahead.published.append((session, delivery, slot.started, outcome))
            free = self._only is None  # that one stays until the confirm (`go_on`), for the order
        else:
            if isinstance(outcome, Finished):
                self.spent.append((1, now - slot.started))
                slot.release(state_lost=outcome.state_lost)
            elif isinstance(outcome, Exception):
                slot.release(state_lost=True)
            elif outcome is LOST or isinstance(outcome, Poison):
                slot.release()
            else:
                free = False  # it is a request, and the slot waits for its reply
            self.outcomes.append((slot, session, delivery, outcome))
        return free

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            self._call()

    def _call(self) -> None:
        if not self._called:
            self._called = True
            try:
                self._loop.call_soon_threadsafe(self.look)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more
