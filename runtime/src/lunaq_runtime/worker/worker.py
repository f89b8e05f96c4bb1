"""One consumer at work: delivery, decode, policy, Lua, settle (design.md section 5).

The main task opens a session (a subscription), waits for its end and winds it down: for a message that must
run alone, for a withdrawn permission, or to drain. Slots take what is ready; each has a Lua state and runs
one invocation at a time. Whatever happens, a delivery is acked only after its run, or once its retry or
dead letter is confirmed (`settle`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.lua.errors import CANCELED, HandlerError
from lunaq_runtime.policy import CONSUME
from lunaq_runtime.retry import TIMEOUT, Poison, Requeue, decide
from lunaq_runtime.settle import Settler
from lunaq_runtime.worker.counters import Counters
from lunaq_runtime.worker.requests import Requests
from lunaq_runtime.worker.session import End, Session
from lunaq_runtime.worker.slot import Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from typing import Any

    from lunaq_runtime.brokers.base import Broker, Subscription
    from lunaq_runtime.entries.model import Consumer, Queue
    from lunaq_runtime.ids import Id
    from lunaq_runtime.message import Delivery
    from lunaq_runtime.policy import Policy
    from lunaq_runtime.worker.slot import State
    from lunaq_runtime.worker.stepper import Stepper

logger = logging.getLogger(__name__)

FIRST_BACKOFF = 0.5
MAX_BACKOFF = 30.0
STUCK_GRACE = 5.0
"""Seconds beyond its time after which a handler is taken to be stuck where no Lua hook reaches it."""
INTERRUPT_GRACE = 2.0
"""Seconds that interrupted handlers get to come back, and confirms to arrive, at the drain deadline."""


DEFECT_PAUSE = 5.0
"""Seconds until a delivery that failed inside the worker, not inside its handler, is handed back."""


class HandlerStuckError(Exception):
    """A handler is stuck in a C call: only the end of the process frees its thread."""


class Worker:
    """Runs one consumer on one broker.

    `policy` is asked at every look; call `policy_changed` when its answer may have changed. `queues` are
    all queues of the document, by ID. `make_state` makes a Lua state with the handler loaded, in a thread.
    """

    def __init__(  # noqa: PLR0913 - its collaborators, and two seams for tests
        self,
        consumer: Consumer,
        queues: Mapping[Id, Queue],
        broker: Broker,
        policy: Callable[[], Policy],
        *,
        stepper: Stepper,
        make_state: Callable[[], State],
        clock: Callable[[], float] = time.time,
        stuck_grace: float = STUCK_GRACE,
        counters: Counters | None = None,
    ) -> None:
        self.consumer = consumer
        self.queue = queues[consumer.queue]
        self.counters = counters or Counters()
        self.failed: asyncio.Future[HandlerStuckError] = asyncio.get_running_loop().create_future()
        self._broker = broker
        self._policy = policy
        self._clock = clock
        self._stuck_grace = stuck_grace
        self._requests = Requests(broker, self.queue.driver, queues, self.counters)
        self._ready: asyncio.Queue[tuple[Session, Delivery]] = asyncio.Queue()
        self._slots = [
            Slot(consumer, self.queue, stepper, make_state, self._requests, self.counters, clock)
            for _ in range(consumer.concurrency)
        ]
        self._session: Session | None = None
        self._subscription: Subscription | None = None
        self._changed = asyncio.Event()
        self._deadline = float("inf")
        self._draining = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._main: asyncio.Task[None] | None = None

    @property
    def label(self) -> str:
        """Name the consumer as logs do."""
        return f"consumer {self.consumer.id}"

    @property
    def consuming(self) -> bool:
        """Whether the broker delivers to us right now, or would if there was something."""
        session = self._session
        if self._subscription is None or session is None or self._draining.is_set():
            return False
        return session.end is End.SUSPECT or self._subscription.active

    def is_allowed(self) -> bool:
        """Whether the policy lets this consumer consume its queue."""
        return self._policy().allows(CONSUME, str(self.queue.id))

    async def start(self) -> None:
        """Load the handler and start consuming in the background; HandlerLoadError says what is wrong."""
        await self._slots[0].load()
        if self.consumer.prefetch < self.consumer.concurrency and not self.consumer.auto_ack:
            logger.warning(
                "%s: prefetch %d is below concurrency %d: the surplus slots stay idle",
                self.label,
                self.consumer.prefetch,
                self.consumer.concurrency,
            )
        self._tasks = [asyncio.create_task(self._serve(slot)) for slot in self._slots]
        self._tasks.append(asyncio.create_task(self._watch_for_stuck()))
        self._main = asyncio.create_task(self._consume())

    def policy_changed(self) -> None:
        """Look at the policy again: a withdrawn right ends the session at once."""
        self._changed.set()
        if self._session and not self.is_allowed():
            self._session.finish(End.WITHDRAWN)

    async def drain(self) -> None:
        """Stop taking messages, let running handlers finish within `drain_timeout`, settle, and end."""
        if not self._draining.is_set():
            self._deadline = asyncio.get_running_loop().time() + self.consumer.drain_timeout
            self._draining.set()
            self._changed.set()
            if self._session:
                self._session.finish(End.DRAIN)
        if self._main:
            await asyncio.shield(self._main)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _consume(self) -> None:
        """Hold one session after the other until told to drain."""
        while not self._draining.is_set():
            self._changed.clear()
            if not self.is_allowed():
                logger.warning(
                    "%s may not consume queue %s: not consuming until its policy grants it",
                    self.label,
                    self.queue.id,
                )
                await self._changed.wait()
                continue
            session = self._new_session()
            subscription = await self._subscribe(session)
            if subscription:
                self._session, self._subscription = session, subscription
                session.settler.attach(subscription)
                if self._draining.is_set():
                    session.finish(End.DRAIN)
                elif not self.is_allowed():
                    session.finish(End.WITHDRAWN)
                await session.ended()
                await self._wind_down(session, subscription)
                self._session = self._subscription = None

    def _new_session(self) -> Session:
        settler = Settler(self._broker, self.counters.report, no_ack=self.consumer.auto_ack, label=self.label)
        return Session(self.queue, settler, self._make_ready, self._clock, no_ack=self.consumer.auto_ack)

    async def _subscribe(self, session: Session) -> Subscription | None:
        """Subscribe, again and again; None if draining or the policy came first."""
        backoff = FIRST_BACKOFF
        while not self._changed.is_set():
            work = asyncio.ensure_future(
                self._broker.consume(
                    self.queue.queue_name,
                    prefetch=self.consumer.prefetch,
                    on_deliveries=session.deliver,
                    consumer_tag=self.consumer.consumer_tag,
                    exclusive=self.consumer.exclusive,
                    no_ack=self.consumer.auto_ack,
                )
            )
            await _first(work, self._draining.wait())
            if not work.done():
                work.cancel()
                return None
            try:
                subscription = work.result()
            except BrokerError as error:
                logger.warning(
                    "%s cannot consume queue '%s' (%s), tries again in %.1f s: %s",
                    self.label,
                    self.queue.queue_name,
                    error.reason,
                    backoff,
                    error,
                )
                await _first(self._changed.wait(), asyncio.sleep(backoff))
                backoff = min(backoff * 2, MAX_BACKOFF)
            else:
                logger.info("%s consumes queue '%s'", self.label, self.queue.queue_name)
                return subscription
        return None

    async def _wind_down(self, session: Session, subscription: Subscription) -> None:
        if session.end is End.SUSPECT:
            await self._run_suspect(session, subscription)
        if session.end > End.SUSPECT:
            logger.info("%s stops consuming: %s", self.label, session.end.name.lower())
            self._hand_back_unstarted(session)
            await self._cancel(subscription)
            session.settler.hurry()
            await self._await_settled(session)
        await session.settler.close()

    async def _run_suspect(self, session: Session, subscription: Subscription) -> None:
        """Let everything else finish, then run the suspect with nothing else unacknowledged."""
        await self._cancel(subscription)
        await _first(session.settler.settled(but=1), session.ended(End.SUSPECT))
        if session.end > End.SUSPECT:
            return
        delivery = session.take_suspect()
        if delivery:
            logger.warning(
                "%s runs message '%s' alone: processes ended while it was in flight",
                self.label,
                delivery.properties.message_id or "",
            )
            self._make_ready(session, delivery)
        await _first(session.settler.settled(), session.ended(End.SUSPECT))

    async def _await_settled(self, session: Session) -> None:
        """Wait for running handlers, at the drain deadline interrupt them."""
        settled = asyncio.ensure_future(session.settler.settled())
        await _first(settled, session.ended(End.WITHDRAWN))
        loop = asyncio.get_running_loop()
        if not settled.done():
            await asyncio.wait({settled}, timeout=max(self._deadline - loop.time(), 0.0))
        if not settled.done():
            logger.warning("%s: drain deadline reached, running handlers are interrupted", self.label)
            self._hand_back_unstarted(session)
            error = HandlerError("interrupted: the process is shutting down", CANCELED, retryable=True)
            for slot in self._slots:
                slot.interrupt(error)
            await asyncio.wait({settled}, timeout=INTERRUPT_GRACE)
        settled.cancel()

    async def _cancel(self, subscription: Subscription) -> None:
        try:
            await subscription.cancel()
        except BrokerError as error:
            logger.info("%s: the subscription is gone already: %s", self.label, error)

    def _hand_back_unstarted(self, session: Session) -> None:
        if delivery := session.take_suspect():
            session.hand_back(delivery)
        if session.returning or self._deadline <= asyncio.get_running_loop().time():
            while not self._ready.empty():
                owner, unstarted = self._ready.get_nowait()
                owner.hand_back(unstarted)

    def _make_ready(self, session: Session, delivery: Delivery) -> None:
        self._ready.put_nowait((session, delivery))

    async def _serve(self, slot: Slot) -> None:
        while True:
            session, delivery = await self._ready.get()
            if session.returning:
                session.hand_back(delivery)
            elif not self.is_allowed():
                session.hand_back(delivery)
                self.policy_changed()
            else:
                try:
                    await slot.handle(session.settler, delivery)
                except Exception:
                    # A defect of ours; the message is not to blame, and must not come back at full speed.
                    logger.exception("%s: a delivery could not be handled", self.label)
                    session.settler.submit(delivery, Requeue(pause=DEFECT_PAUSE))

    async def _watch_for_stuck(self) -> None:
        """Settle what no Lua hook can stop, and ask for the end of the process."""
        while True:
            await asyncio.sleep(min(1.0, self._stuck_grace))
            for slot in self._slots:
                if stuck := slot.abandon_if_overdue(self._stuck_grace):
                    settler, delivery = stuck
                    text = f"the handler exceeded its time of {self.consumer.handler.timeout:g} s in a C call"
                    poison = Poison(TIMEOUT, text, "Timeout")
                    settler.submit(delivery, decide(delivery, poison, self.queue, self._clock()))
                    self.counters.failed += 1
                    logger.error("%s: %s, and cannot be stopped: the process must end", self.label, text)
                    if not self.failed.done():
                        self.failed.set_result(HandlerStuckError(f"{self.label}: {text}"))


async def _first(
    one: Coroutine[Any, Any, Any] | asyncio.Future[Any],
    other: Coroutine[Any, Any, Any],
) -> None:
    """Wait for whichever ends first; the other is cancelled, a future that was passed in is not."""
    first = asyncio.ensure_future(one)
    second = asyncio.ensure_future(other)
    try:
        await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        second.cancel()
        if first is not one:
            first.cancel()
