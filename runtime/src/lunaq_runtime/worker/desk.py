"""The event loop's side of a lane: it settles what has ended, and carries out what handlers ask for.

The worker makes one per consumer. A request is answered by a callback; only what is rare gets a task
(`requests.Requests.execute`). The handler's time keeps running while it waits.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.lua.errors import INTERNAL, HandlerError
from lunaq_runtime.lua.invocation import timeout_error
from lunaq_runtime.lua.requests import Finished, Publish, Settle, Sleep, Wait
from lunaq_runtime.retry import (
    TIMEOUT,
    Ack,
    Failed,
    HandedBack,
    Outcome,
    Poison,
    Republish,
    Requeue,
    Succeeded,
    attempts_of,
    decide,
    suspect,
)
from lunaq_runtime.worker.confirms import Confirms
from lunaq_runtime.worker.gather import gather
from lunaq_runtime.worker.lane import LOST, Lane
from lunaq_runtime.worker.pending import Pending
from lunaq_runtime.worker.requests import answered

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from lunaq_runtime.entries.model import Consumer, Queue
    from lunaq_runtime.lua.requests import Request, Single
    from lunaq_runtime.message import Delivery
    from lunaq_runtime.worker.counters import Counters
    from lunaq_runtime.worker.requests import Requests
    from lunaq_runtime.worker.session import Session
    from lunaq_runtime.worker.slot import Slot
    from lunaq_runtime.worker.stepper import Stepper

logger = logging.getLogger(__name__)

DEFECT_PAUSE = 5.0
"""Seconds until a delivery that failed inside the worker, not inside its handler, is handed back."""


class Desk:
    """Takes the outcomes of one consumer's slots; `lane` is where they come from.

    `clock` tells Unix seconds. All of it runs on the event loop.
    """

    def __init__(
        self,
        consumer: Consumer,
        queue: Queue,
        stepper: Stepper,
        slots: list[Slot],
        requests: Requests,
        counters: Counters,
        clock: Callable[[], float],
    ) -> None:
        self._consumer = consumer
        self._queue = queue
        self._slots = slots
        self._requests = requests
        self._counters = counters
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._abandoned: set[Delivery] = set()
        self._timeout = consumer.handler.timeout
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._interruption: HandlerError | None = None
        self.lane = Lane(self._loop, stepper, slots, self.collect)
        self._confirms = Confirms(self.lane, requests, self._timeout, self._end, self._look_at)

    @property
    def running(self) -> int:
        """Count the deliveries in work."""
        return sum(slot.delivery is not None for slot in self._slots) + len(self._confirms)

    @property
    def lua_memory(self) -> int:
        """Sum the bytes of all Lua states."""
        return sum(slot.lua_memory for slot in self._slots)

    def close(self) -> None:
        """Stop all timers."""
        self.lane.close()
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def collect(self) -> bool:
        """Take all outcomes there are; false if there were none."""
        lane, counters = self.lane, self._counters
        session = lane.session
        found = bool(lane.outcomes)
        if session and (count := len(session.succeeded)):
            found = True
            succeeded = [session.succeeded.popleft() for _ in range(count)]
            counters.delivered += count
            counters.redelivered += sum([delivery.redelivered for delivery in succeeded])
            counters.handled += count
            if self._abandoned:
                succeeded = [delivery for delivery in succeeded if not self._was_abandoned(delivery)]
            counters.acked += session.settler.ack(succeeded)
        found = self._confirms.publish(self._interruption) or found
        if count := len(lane.spent):
            counters.ran([lane.spent.popleft() for _ in range(count)])
        for _ in range(len(lane.outcomes)):
            slot, session, delivery, outcome = lane.outcomes.popleft()
            self._take(slot, session, delivery, outcome)
        session = lane.session
        if session and session.unstarted and session.returning:
            session.hand_back_unstarted()  # a thread had taken it and put it back
        return found

    def interrupt(self, error: HandlerError) -> None:
        """End every run as soon as possible; their messages are handed back."""
        self._interruption = error
        for slot in self._slots:
            slot.interrupt(error)
            if pending := slot.pending:
                pending.drop()
                self.lane.resume(slot, error)
        self._confirms.interrupt(error)

    def abandon_overdue(self, grace: float) -> str:
        """Settle what should have ended `grace` seconds ago and no Lua hook can stop; tell what it did."""
        self.collect()
        now = self._loop.time()
        told = ""
        for slot in self._slots:
            delivery, session, batch = slot.delivery, slot.session, slot.batch
            overdue = now > slot.started + self._timeout + grace
            if delivery is None or session is None or not overdue or delivery in self._abandoned:
                continue
            told = f"the handler exceeded its time of {self._timeout:g} s in a C call"
            several = list(batch.deliveries) if batch else [delivery]
            self._abandoned.update(several)
            if len(several) > 1:
                # Any of them may be the one; each will run alone.
                for one in several:
                    session.settler.submit(one, suspect(one, self._queue))
            else:
                self._counters.failed += 1
                self._settle(session, delivery, Poison(TIMEOUT, told, "Timeout"))
        return told

    def _was_abandoned(self, delivery: Delivery) -> bool:
        if delivery not in self._abandoned:
            return False
        self._abandoned.discard(delivery)
        return True

    # What has ended -------------------------------------------------------------------------------------

    def _take(self, slot: Slot, session: Session, delivery: Delivery, outcome: Any) -> None:
        match outcome:
            case Finished():
                self._end(session, delivery, outcome)
            case Poison():
                self._count(delivery)
                self._counters.failed += 1
                self._settle(session, delivery, outcome)
            case Exception():
                # A defect of ours; the message is not to blame, and must not come back at full speed.
                logger.error(
                    "consumer %s: a delivery could not be handled", self._consumer.id, exc_info=outcome
                )
                session.settler.submit(delivery, Requeue(pause=DEFECT_PAUSE))
            case _ if outcome is LOST:
                session.settler.drop(delivery)
            case _:
                self._carry_out(slot, session, delivery, outcome)

    def _count(self, delivery: Delivery) -> None:
        self._counters.delivered += 1
        self._counters.redelivered += delivery.redelivered

    def _end(self, session: Session, delivery: Delivery, finished: Finished) -> None:
        """Take the end of a run, wherever it was."""
        self._count(delivery)
        if self._was_abandoned(delivery):
            return
        if finished.error is not None and self._interruption:
            if not finished.settled:
                self._settle(session, delivery, HandedBack())
            return
        self._counters.handled += 1
        if finished.error is not None or finished.settled == "nack":
            self._counters.failed += 1
            self._log_failure(delivery, finished)
        if not finished.settled:
            self._settle(session, delivery, _outcome(finished))

    def _settle(self, session: Session, delivery: Delivery, outcome: Outcome) -> None:
        plan = decide(delivery, outcome, self._queue, self._clock())
        if isinstance(outcome, Poison):
            logger.error(
                "consumer %s: message '%s' is a dead letter (%s): %s",
                self._consumer.id,
                delivery.properties.message_id or "",
                outcome.reason,
                outcome.text,
                extra=self._log_fields(delivery),
            )
        session.settler.submit(delivery, plan)

    def _log_failure(self, delivery: Delivery, finished: Finished) -> None:
        logger.warning(
            "consumer %s: message '%s' failed (attempt %d of %d%s): %s",
            self._consumer.id,
            delivery.properties.message_id or "",
            attempts_of(delivery.properties) + 1,
            self._queue.retry.max_attempts,
            f", settled by {finished.settled}" if finished.settled else "",
            finished.error.text if finished.error else "msg:nack()",
            extra=self._log_fields(delivery),
        )

    def _log_fields(self, delivery: Delivery) -> dict[str, Any]:
        return {
            "consumer": str(self._consumer.id),
            "queue": str(self._queue.id),
            "message_id": delivery.properties.message_id or "",
            "attempt": attempts_of(delivery.properties),
        }

    # What a handler waits for ---------------------------------------------------------------------------

    def _pending(self, slot: Slot) -> Pending | None:
        """Make what takes the reply to a slot's request, within the handler's time; None if interrupted."""
        if self._interruption:
            self.lane.resume(slot, self._interruption)
            return None
        self._look_at(slot.started + self._timeout)
        slot.pending = pending = Pending(slot, self.lane.resume)
        return pending

    def _carry_out(self, slot: Slot, session: Session, delivery: Delivery, request: Request) -> None:
        pending = self._pending(slot)
        if pending is None:
            return
        match request:
            case Publish():
                self._requests.publish_soon(*slot.traced(request, pending.answer))
            case Sleep(seconds=seconds):
                pending.work = self._loop.call_later(seconds, pending.wake)
            case Settle(ack=True):
                pending.answer(self._ack(session, delivery))
            case _:
                self._await(pending, self._execute(slot, session, delivery, request))

    async def _execute(
        self, slot: Slot, session: Session, delivery: Delivery, request: Request
    ) -> tuple[Any, ...]:
        """Carry out any request; raises what only a defect raises."""
        if isinstance(request, Wait):
            return await gather(request, partial(self._execute_beside, slot))
        if not isinstance(request, Settle):
            return await self._requests.execute(request)
        return self._ack(session, delivery) if request.ack else await self._nack(session, delivery)

    async def _execute_beside(self, slot: Slot, request: Single) -> tuple[Any, ...]:
        """Carry out one of several requests of a handler."""
        if isinstance(request, Publish):
            return await answered(lambda answer: self._requests.publish_soon(*slot.traced(request, answer)))
        return await self._requests.execute(request)

    def _ack(self, session: Session, delivery: Delivery) -> tuple[Any, ...]:
        try:
            session.settler.carry_out_now(delivery, Ack())
        except BrokerError as error:
            return None, HandlerError(str(error), INTERNAL, retryable=False)
        return True, None

    async def _nack(self, session: Session, delivery: Delivery) -> tuple[Any, ...]:
        plan = decide(delivery, Failed("the handler called msg:nack()"), self._queue, self._clock())
        if self._consumer.auto_ack:
            plan = Ack()  # sends nothing; the delivery is just no longer held
        try:
            if isinstance(plan, Republish):
                await session.settler.carry_out(delivery, plan)
            else:
                session.settler.carry_out_now(delivery, plan)
        except BrokerError as error:
            return None, HandlerError(str(error), INTERNAL, retryable=False)
        return True, None

    def _await(self, pending: Pending, work: Coroutine[Any, Any, tuple[Any, ...]]) -> None:
        pending.work = task = self._loop.create_task(work)
        task.add_done_callback(partial(self._answered, pending))

    def _answered(self, pending: Pending, task: asyncio.Task[tuple[Any, ...]]) -> None:
        if task.cancelled():
            return
        if error := task.exception():
            logger.error("consumer %s: a request failed", self._consumer.id, exc_info=error)
            pending.answer(HandlerError(f"the handler could not be run: {error}", INTERNAL))
        else:
            pending.answer(task.result())

    def _look_at(self, deadline: float) -> None:
        """Have `_expire` look then, unless it does so before."""
        if deadline >= self._timer_at:
            return
        if self._timer:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_at(deadline, self._expire)

    def _expire(self) -> None:
        """End the runs whose time is up while they wait."""
        self._timer, self._timer_at = None, float("inf")
        following = float("inf")
        # A timer may be a little early; the next look would only be a millisecond later.
        now = self._loop.time() + 0.001
        for slot in self._slots:
            if pending := slot.pending:
                deadline = slot.started + self._timeout
                if deadline <= now:
                    pending.drop()
                    self.lane.resume(slot, timeout_error(self._timeout))
                else:
                    following = min(following, deadline)
        following = min(following, self._confirms.expire(now))
        self._look_at(following)


def _outcome(finished: Finished) -> Outcome:
    if finished.error is None:
        return Succeeded()
    return Failed(finished.error.text, finished.error.kind_value)
