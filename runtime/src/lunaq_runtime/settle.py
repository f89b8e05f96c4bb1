"""The one place that settles deliveries: it carries plans of `retry` out, for one subscription each.

The order is the promise: a retry or dead letter is published and confirmed first, and only then is the
delivery acked. Between the two a crash gives a duplicate, never a loss. A publish that fails is tried again
while the delivery is ours; once its connection is lost, the broker has it back and nothing is left to do.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.retry import Ack, Republish, Requeue

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from typing import Any

    from lunaq_runtime.brokers.base import Broker, Subscription
    from lunaq_runtime.message import Delivery
    from lunaq_runtime.retry import Plan

logger = logging.getLogger(__name__)

FIRST_BACKOFF = 0.2
MAX_BACKOFF = 30.0
PUBLISH_TIMEOUT = 30.0


class Settler:
    """Settles the deliveries of one subscription.

    `report` is told of each settlement: `acked`, `requeued`, `lost` (the connection went first), or the
    `step` of a re-publish; and `publish_failed` each time a re-publish was refused. `no_ack` is for a
    subscription that the broker expects no settlement from: then nothing is ever sent.
    """

    def __init__(
        self, broker: Broker, report: Callable[[str], None], *, no_ack: bool = False, label: str = ""
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._broker = broker
        self._report = report
        self._no_ack = no_ack
        self._label = label
        self._subscription: Subscription | None = None
        self._held: set[Delivery] = set()
        self._claimed: set[Delivery] = set()  # somebody is at it: nobody else settles them
        self._acks: list[Delivery] = []
        self._requeues: list[Delivery] = []
        self._flushing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._hurry = asyncio.Event()
        self._give_up = asyncio.Event()
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    @property
    def held(self) -> int:
        """Count what the subscription gave us and we have not settled yet."""
        return len(self._held) + len(self._claimed) + len(self._acks) + len(self._requeues)

    def attach(self, subscription: Subscription) -> None:
        """Name the subscription; deliveries may have come before this, settlements wait for it."""
        self._subscription = subscription
        self._schedule_flush()

    def hold(self, deliveries: Iterable[Delivery]) -> None:
        """Note deliveries that have arrived."""
        self._held.update(deliveries)

    def alive(self, delivery: Delivery) -> bool:
        """Whether the delivery is still ours to settle, and nobody is at it; may be asked in any thread."""
        if delivery not in self._held:
            return False
        subscription = self._subscription
        return self._no_ack or subscription is None or subscription.alive(delivery)

    def all_alive(self, deliveries: list[Delivery]) -> bool:
        """Whether all of these are `alive`; in any thread, and for little more than the cost of one."""
        return self._held.issuperset(deliveries) and len(self._in_reach(deliveries)) == len(deliveries)

    def _in_reach(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Leave out those whose settling could not reach the broker any more."""
        subscription = self._subscription
        if self._no_ack or subscription is None or not deliveries:
            return deliveries
        if len({delivery.generation for delivery in deliveries}) == 1:
            return deliveries if subscription.alive(deliveries[0]) else []
        return [delivery for delivery in deliveries if subscription.alive(delivery)]

    def _reachable(self, delivery: Delivery) -> bool:
        return self._no_ack or self._subscription is None or self._subscription.alive(delivery)

    def drop(self, delivery: Delivery) -> None:
        """Forget a delivery that is no longer ours; the broker delivers it again."""
        if self._claim(delivery):
            self._forget(delivery, "lost")

    def ack(self, deliveries: list[Delivery]) -> int:
        """Ack what handlers are done with; tell how many of them were still ours. These are not reported."""
        held = self._held
        mine = self._in_reach(deliveries)
        if not held.issuperset(mine):
            mine = [delivery for delivery in mine if delivery in held]
        held.difference_update(mine)
        if not self._no_ack:
            self._acks += mine
            self._schedule_flush()
        if len(mine) < len(deliveries):
            for delivery in deliveries:
                self.drop(delivery)
        self._wake()
        return len(mine)

    def submit(self, delivery: Delivery, plan: Plan) -> None:
        """Carry out a plan without waiting for it; only the first plan for a delivery counts."""
        if not self._claim(delivery):
            return
        match plan:
            case _ if self._no_ack:
                self._forget(delivery, "acked")
            case Ack():
                self._ack(delivery, "acked")
            case Requeue(pause=0.0):
                self._requeue(delivery)
            case _:
                self._spawn(self._carry_out_quietly(delivery, plan))

    def carry_out_now(self, delivery: Delivery, plan: Plan) -> None:
        """Carry out a plan that takes no time, or begin one that does.

        BrokerError `connection` if the delivery was lost meanwhile.
        """
        self._require(delivery)
        self.submit(delivery, plan)

    async def carry_out(self, delivery: Delivery, plan: Republish) -> None:
        """Re-publish and ack, waiting for both; BrokerError `connection` if the delivery was lost."""
        self._require(delivery)
        self._claim(delivery)
        # Shielded: whoever waits may run out of time, and the message is to be settled all the same.
        await asyncio.shield(self._spawn(self._republish(delivery, plan)))

    async def settled(self, *, but: int = 0) -> None:
        """Wait until at most `but` deliveries are held."""
        if self.held <= but:
            return
        waiter = self._loop.create_future()
        self._waiters.append((but, waiter))
        await waiter

    def hurry(self) -> None:
        """End all pauses before a requeue: the process is about to leave."""
        self._hurry.set()

    async def close(self) -> None:
        """Stop trying, close the subscription; what is held goes back to the queue, uncounted."""
        self._give_up.set()
        self._hurry.set()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._flush()
        if self._subscription:
            await self._subscription.close()
        self._held.clear()
        self._claimed.clear()
        self._wake()

    async def _carry_out_quietly(self, delivery: Delivery, plan: Plan) -> None:
        try:
            match plan:
                case Republish():
                    await self._republish(delivery, plan)
                case Requeue(pause=pause):
                    await self._requeue_later(delivery, pause)
                case Ack():
                    self._ack(delivery, "acked")
        except BrokerError as error:
            logger.info("%s: left to redelivery: %s", self._label, error)

    async def _republish(self, delivery: Delivery, plan: Republish) -> None:
        backoff = FIRST_BACKOFF
        while not await self._published(delivery, plan):
            await _wait(self._give_up, backoff * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
            backoff = min(backoff * 2, MAX_BACKOFF)
            if self._give_up.is_set():
                raise BrokerError("closed", f"the {plan.step} of the message was not taken before shutdown")
        self._ack(delivery, plan.step)

    async def _published(self, delivery: Delivery, plan: Republish) -> bool:
        """Try once; BrokerError if the delivery is no longer ours."""
        if not self._reachable(delivery):
            self._forget(delivery, "lost")
            raise _lost()
        try:
            await self._broker.publish(plan.message, timeout=PUBLISH_TIMEOUT)
        except Exception as error:
            self._report("publish_failed")
            logger.warning(
                "%s: exchange '%s' did not take message '%s' for its %s (%s); it stays unacknowledged and is"
                " tried again",
                self._label,
                plan.message.exchange,
                delivery.properties.message_id or "",
                plan.step,
                error,
                exc_info=not isinstance(error, BrokerError),
            )
            return False
        return True

    async def _requeue_later(self, delivery: Delivery, pause: float) -> None:
        await _wait(self._hurry, pause)
        self._requeue(delivery)

    def _ack(self, delivery: Delivery, report: str) -> None:
        self._queue_up(delivery, self._acks, report)

    def _requeue(self, delivery: Delivery) -> None:
        self._queue_up(delivery, self._requeues, "requeued")

    def _queue_up(self, delivery: Delivery, batch: list[Delivery], report: str) -> None:
        if not self._reachable(delivery):
            self._forget(delivery, "lost")
        elif delivery in self._claimed:
            self._claimed.discard(delivery)
            batch.append(delivery)
            self._report(report)
            self._schedule_flush()

    def _claim(self, delivery: Delivery) -> bool:
        """Keep others from settling it; false where somebody has already."""
        if delivery not in self._held:
            return False
        self._held.discard(delivery)
        self._claimed.add(delivery)
        return True

    def _forget(self, delivery: Delivery, report: str) -> None:
        if delivery in self._claimed:
            self._claimed.discard(delivery)
            self._report(report)
            self._wake()

    def _require(self, delivery: Delivery) -> None:
        if not self._no_ack and not self.alive(delivery):
            self.drop(delivery)
            raise _lost()

    def _schedule_flush(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Send what one turn of the loop has gathered, in one call."""
        self._flushing = False
        if self._subscription is None or not (self._acks or self._requeues):
            return
        acks, self._acks = self._acks, []
        requeues, self._requeues = self._requeues, []
        self._subscription.settle(ack=acks, requeue=requeues)
        self._wake()

    def _wake(self) -> None:
        if not self._waiters:
            return
        held = self.held
        for but, waiter in self._waiters:
            if held <= but and not waiter.done():
                waiter.set_result(None)
        self._waiters = [(but, waiter) for but, waiter in self._waiters if not waiter.done()]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited for it may be gone; then it is nobody's


def _lost() -> BrokerError:
    return BrokerError("connection", "the connection was lost; the broker delivers the message again")


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
