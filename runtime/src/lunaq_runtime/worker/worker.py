"""One consumer at work: delivery, decode, policy, Lua, settle (design.md section 5).

The main task opens a session (a subscription), waits for its end and winds it down: for a message that must
run alone, for a withdrawn permission, or to drain. What is delivered meanwhile goes through the lane, where
Lua threads run it in the consumer's slots, to the desk, which settles it. Whatever happens, a delivery is
acked only after its run, or once its retry or dead letter is confirmed (`settle`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.lua.errors import CANCELED, HandlerError
from lunaq_runtime.policy import CONSUME
from lunaq_runtime.settle import Settler
from lunaq_runtime.worker.counters import Counters
from lunaq_runtime.worker.desk import Desk
from lunaq_runtime.worker.requests import Requests
from lunaq_runtime.worker.session import End, Session
from lunaq_runtime.worker.slot import Slot
from lunaq_runtime.worker.traced import TracedSlot

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from typing import Any

    from lunaq_runtime.brokers.base import Broker, Subscription
    from lunaq_runtime.entries.model import Consumer, Queue
    from lunaq_runtime.ids import Id
    from lunaq_runtime.policy import Policy
    from lunaq_runtime.spans import Spans
    from lunaq_runtime.worker.slot import State
    from lunaq_runtime.worker.stepper import Stepper

logger = logging.getLogger(__name__)

FIRST_BACKOFF = 0.5
MAX_BACKOFF = 30.0
STUCK_GRACE = 5.0
"""Seconds beyond its time after which a handler is taken to be stuck where no Lua hook reaches it."""
LOADED_AT_START = 10
"""Slots that load the handler before the first message. The others do it when they are needed, which takes
milliseconds: where messages come faster, each would find all loaded slots busy and load one more."""
INTERRUPT_GRACE = 2.0
"""Seconds that interrupted handlers get to come back, and confirms to arrive, at the drain deadline."""


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
        spans: Spans | None = None,
    ) -> None:
        self.consumer = consumer
        self.queue = queues[consumer.queue]
        self._counters = counters = counters or Counters()
        self.failed: asyncio.Future[HandlerStuckError] = asyncio.get_running_loop().create_future()
        self._broker = broker
        self._policy = policy
        self._clock = clock
        self._stuck_grace = stuck_grace
        self._stepper = stepper
        codec = self.queue.codec
        self._slots = [
            TracedSlot(consumer, codec, make_state, spans) if spans else Slot(consumer, codec, make_state)
            for _ in range(max(consumer.concurrency, 1))
        ]
        ranges = consumer.handler.private_ranges
        self._requests = Requests(broker, self.queue.driver, queues, counters, ranges)
        self._desk = Desk(consumer, self.queue, stepper, self._slots, self._requests, counters, clock)
        self._lane = self._desk.lane
        self._session: Session | None = None
        self._subscription: Subscription | None = None
        self._changed = asyncio.Event()
        self._deadline = float("inf")
        self._draining = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._main: asyncio.Task[None] | None = None

    @property
    def counters(self) -> Counters:
        """What it has done so far, and does now."""
        self._counters.running = self._desk.running
        self._counters.lua_memory = self._desk.lua_memory
        return self._counters

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
        for slot in self._slots[:LOADED_AT_START]:
            await self._stepper.call(slot.load)
        if self.consumer.prefetch < self.consumer.concurrency and not self.consumer.auto_ack:
            logger.warning(
                "%s: prefetch %d is below concurrency %d: the surplus slots stay idle",
                self.label,
                self.consumer.prefetch,
                self.consumer.concurrency,
            )
        self._tasks = [asyncio.create_task(self._watch_for_stuck())]
        self._main = asyncio.create_task(self._consume())

    def policy_changed(self) -> None:
        """Look at the policy again: a withdrawn right ends the session at once, and nothing more starts."""
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
        self._desk.close()
        await self._requests.close()

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
            # Known before it is subscribed: a right withdrawn meanwhile must hold for the first delivery.
            self._session = self._lane.session = session = self._new_session()
            subscription = await self._subscribe(session)
            if subscription:
                self._subscription = subscription
                session.settler.attach(subscription)
                if self._draining.is_set():
                    session.finish(End.DRAIN)
                await session.ended()
                await self._wind_down(session, subscription)
            self._session = self._lane.session = self._subscription = None

    def _new_session(self) -> Session:
        no_ack = self.consumer.auto_ack
        settler = Settler(self._broker, self._counters.report, no_ack=no_ack, label=self.label)
        return Session(self.queue, settler, self._lane.schedule, self._clock, no_ack=no_ack)

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
        if delivery := session.run_suspect():
            logger.warning(
                "%s runs message '%s' alone: processes ended while it was in flight",
                self.label,
                delivery.properties.message_id or "",
            )
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
            session.hand_back_unstarted()
            self._desk.interrupt(
                HandlerError("interrupted: the process is shutting down", CANCELED, retryable=True)
            )
            await asyncio.wait({settled}, timeout=INTERRUPT_GRACE)
        settled.cancel()

    async def _cancel(self, subscription: Subscription) -> None:
        try:
            await subscription.cancel()
        except BrokerError as error:
            logger.info("%s: the subscription is gone already: %s", self.label, error)

    async def _watch_for_stuck(self) -> None:
        """Settle what no Lua hook can stop, and ask for the end of the process."""
        while True:
            await asyncio.sleep(min(1.0, self._stuck_grace))
            if told := self._desk.abandon_overdue(self._stuck_grace):
                logger.error("%s: %s, and cannot be stopped: the process must end", self.label, told)
                if not self.failed.done():
                    self.failed.set_result(HandlerStuckError(f"{self.label}: {told}"))


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
