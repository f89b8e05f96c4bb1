"""Runs an entries document: connects its brokers, declares what is ours to declare, starts its consumers.

`main` (the image's entry point) and the local mode both run an `App`; what brokers and policies are behind
it is theirs to choose. A consumer that cannot run keeps the app from being ready, and no other from working.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Protocol

from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.lua.errors import HandlerLoadError
from lunaq_runtime.lua.modules.services import Services
from lunaq_runtime.policy import DENY_ALL
from lunaq_runtime.topology import combine, dead_letter_name, topology_of
from lunaq_runtime.worker import Counters, Stepper, Worker
from lunaq_runtime.worker.host import state_maker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from lunaq_runtime.brokers.base import Broker
    from lunaq_runtime.entries.model import Consumer, Document, Queue
    from lunaq_runtime.ids import Id
    from lunaq_runtime.policy import Policy
    from lunaq_runtime.spans import Spans
    from lunaq_runtime.worker import HandlerStuckError

logger = logging.getLogger(__name__)

FIRST_BACKOFF = 0.5
MAX_BACKOFF = 30.0
TICK = 1.0
STALLED = 30.0
"""Seconds without a turn of the event loop after which the process is not healthy."""


class Policies(Protocol):
    """Where rights come from; `policy_source` watches a file, tests hold a dict."""

    def policy(self, consumer_id: Id) -> Policy:
        """Tell a consumer's rights as they are now; called from several threads."""

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call back on the event loop after each change."""


class App:
    """A document at work.

    `brokers` holds one for each driver that a consumer or a declared queue needs; `services` is what handlers
    share with those of another app of this document, by default nothing; `spans` records traces. Start, then
    watch `ready` and `healthy`, await `wait_failed`, and `drain` at the end; the brokers are then closed.
    """

    def __init__(
        self,
        document: Document,
        brokers: Mapping[Id, Broker],
        policies: Policies,
        services: Services | None = None,
        spans: Spans | None = None,
    ) -> None:
        self._document = document
        self._services = services or Services.of(document)
        self._brokers = brokers
        self._policies = policies
        self._spans = spans
        self._stepper: Stepper | None = None
        self._workers: dict[Id, Worker] = {}
        self._broken: dict[Id, str] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[HandlerStuckError] | None = None
        self._draining = False
        self._ticked = 0.0
        self._policy_changes = 0

    @property
    def ready(self) -> bool:
        """Whether every consumer is loaded, allowed and subscribed, and we are not about to end."""
        if self._draining or self._broken or self._stepper is None:
            return False
        return all(
            consumer in self._workers and self._workers[consumer].consuming
            for consumer in self._document.consumers
        )

    @property
    def healthy(self) -> bool:
        """Whether the process makes progress: a restart would help where this is false."""
        if self._stepper is None:
            return True
        stalled = asyncio.get_running_loop().time() - self._ticked > STALLED
        return not stalled and not (self._failed and self._failed.done())

    @property
    def broken(self) -> Mapping[Id, str]:
        """Consumers whose handler did not load, and why."""
        return self._broken

    @property
    def counters(self) -> dict[Id, Counters]:
        """What each running consumer has done so far."""
        return {consumer: worker.counters for consumer, worker in self._workers.items()}

    async def start(self) -> None:
        """Begin, and return: brokers connect, and consumers start, in the background."""
        loop = asyncio.get_running_loop()
        self._stepper = Stepper()
        self._failed = loop.create_future()
        self._ticked = loop.time()
        for warning in self._document.warnings:
            logger.warning("%s", warning)
        self._policies.on_change(self._policy_changed)
        self._tasks = [asyncio.create_task(self._tick())]
        self._tasks += [
            asyncio.create_task(self._run_driver(driver, broker)) for driver, broker in self._brokers.items()
        ]

    async def wait_failed(self) -> HandlerStuckError:
        """Wait until the process must end, and tell why; drain then."""
        if self._failed is None:
            raise RuntimeError("start the app before waiting for its failure")
        return await asyncio.shield(self._failed)

    async def drain(self) -> None:
        """Stop taking messages, let handlers finish within their drain times, settle, close the brokers."""
        self._draining = True
        for task in self._tasks[1:]:
            task.cancel()
        await asyncio.gather(*self._tasks[1:], return_exceptions=True)
        await asyncio.gather(*(worker.drain() for worker in self._workers.values()))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(broker.close() for broker in self._brokers.values()))
        if self._stepper:
            self._stepper.close()

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._ticked = loop.time()
            await asyncio.sleep(TICK)

    def _policy_changed(self) -> None:
        self._policy_changes += 1
        for worker in self._workers.values():
            worker.policy_changed()

    async def _run_driver(self, driver: Id, broker: Broker) -> None:
        """Bring one driver's topology and consumers up, however long its broker takes."""
        await _until_done(f"driver {driver}: cannot connect", broker.connect)
        logger.info("driver %s is connected: %s %s", driver, broker.server.product, broker.server.version)
        await self._declare(driver, broker)
        await asyncio.gather(
            *(
                self._start_worker(consumer, broker)
                for consumer in self._document.consumers.values()
                if self._document.queues[consumer.queue].driver == driver
            )
        )

    async def _declare(self, driver: Id, broker: Broker) -> None:
        queues = [queue for queue in self._document.queues.values() if queue.driver == driver]
        ours = [queue for queue in queues if queue.declare and not queue.observe]
        if not ours:
            return

        async def verify_and_declare() -> None:
            declared = {queue.queue_name for queue in ours}
            for name in sorted(_foreign_dead_letters(ours) - declared):
                await broker.queue_info(name)
            await broker.declare(combine(topology_of(queue) for queue in ours))

        await _until_done(f"driver {driver}: cannot declare its queues", verify_and_declare)

    async def _start_worker(self, consumer: Consumer, broker: Broker) -> None:
        if self._stepper is None or self._failed is None:
            raise RuntimeError("start the app first")

        known = -1, DENY_ALL

        def policy() -> Policy:
            nonlocal known
            changes, rights = known
            if changes != self._policy_changes:
                changes = self._policy_changes  # read first: rights that are newer are just read once more
                rights = self._policies.policy(consumer.id)
                known = changes, rights
            return rights

        counters = Counters()
        worker = Worker(
            consumer,
            self._document.queues,
            broker,
            policy,
            stepper=self._stepper,
            make_state=state_maker(consumer, policy, counters, self._services),
            counters=counters,
            spans=self._spans,
        )
        try:
            await worker.start()
        except HandlerLoadError as error:
            self._broken[consumer.id] = str(error)
            logger.error("consumer %s: its handler does not load: %s", consumer.id, error)  # noqa: TRY400
            return
        self._workers[consumer.id] = worker
        worker.failed.add_done_callback(self._worker_failed)

    def _worker_failed(self, failed: asyncio.Future[HandlerStuckError]) -> None:
        if self._failed and not self._failed.done() and not failed.cancelled():
            self._failed.set_result(failed.result())


def _foreign_dead_letters(queues: list[Queue]) -> set[str]:
    return {dead_letter_name(queue) for queue in queues if queue.dead_letter}


async def _until_done(what: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do it until it succeeds, with exponential backoff and full jitter."""
    backoff = FIRST_BACKOFF
    while True:
        try:
            await work()
        except BrokerError as error:
            pause = random.uniform(0, backoff)  # noqa: S311 - jitter, no secret
            logger.warning("%s (%s), tries again in %.1f s: %s", what, error.reason, pause, error)
            await asyncio.sleep(pause)
            backoff = min(backoff * 2, MAX_BACKOFF)
        else:
            return
