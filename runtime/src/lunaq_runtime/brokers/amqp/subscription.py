"""A consumer on one queue, through reconnects, closed channels and deleted queues.

Deliveries come from the tap in the batches they arrived in, and settlements leave in one write each: both
go past aiormq, which opens the channel, consumes, cancels and closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Protocol

from lunaq_runtime.brokers.amqp.declare import TIMEOUT, queue_info
from lunaq_runtime.brokers.amqp.errors import heed_cancellation, translated
from lunaq_runtime.brokers.amqp.intake import Intake
from lunaq_runtime.brokers.amqp.link import CLOSE_TIMEOUT
from lunaq_runtime.brokers.base import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from aiormq.abc import DeliveredMessage
    from aiormq.channel import Channel

    from lunaq_runtime.brokers.amqp.link import Link
    from lunaq_runtime.message import Delivery

log = logging.getLogger(__name__)


class Links(Protocol):
    """What a subscription needs of its broker."""

    async def wait_link(self) -> Link:
        """Wait for a connection that is up."""

    def backoff(self) -> Iterator[float]:
        """Yield the waits between attempts, in seconds."""


class AmqpSubscription:
    """One `basic.consume`, made again as often as it takes."""

    def __init__(
        self,
        queue: str,
        on_deliveries: Callable[[list[Delivery]], None],
        *,
        prefetch: int,
        consumer_tag: str,
        exclusive: bool,
        no_ack: bool,
    ) -> None:
        self._name = queue
        self._on_deliveries = on_deliveries
        self._prefetch = prefetch
        self._tag = consumer_tag
        self._exclusive = exclusive
        self._no_ack = no_ack
        self._wanted = True
        self._active = False
        self._generation = 0
        self._channel: Channel | None = None
        self._live_tag = ""
        self._ended = asyncio.Event()
        self._intake: Intake | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def active(self) -> bool:
        return self._active

    def alive(self, delivery: Delivery) -> bool:
        return self._intake is not None and self._intake.alive(delivery)

    async def start(self, links: Links, link: Link) -> None:
        """Consume for the first time, or raise BrokerError; from then on keep it going."""
        await self._open(link)
        self._keeper = asyncio.create_task(self._keep(links), name=f"consume {self._name}")

    @property
    def queue(self) -> str:
        """The queue's name on the broker."""
        return self._name

    def interrupt(self) -> None:
        """Take the consumer for gone and consume anew: a broker without cancel notices does not tell."""
        if self._wanted:
            self._ended.set()

    def settle(self, *, ack: Sequence[Delivery] = (), requeue: Sequence[Delivery] = ()) -> None:
        if not self._no_ack and self._intake is not None:
            self._intake.settle(ack, requeue)

    async def cancel(self) -> None:
        self._wanted = False
        if self._keeper:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        channel = self._channel
        if channel and self._active and not channel.is_closed:
            # Not cancelled when time is up: aiormq would close the channel, which what is in flight needs.
            cancelling = asyncio.ensure_future(channel.basic_cancel(self._live_tag))
            cancelling.add_done_callback(_quietly)
            await asyncio.wait([cancelling], timeout=CLOSE_TIMEOUT)
        self._active = False

    async def close(self) -> None:
        await self.cancel()
        if self._intake:
            await self._intake.said(CLOSE_TIMEOUT)
        await self._drop_channel()

    async def _keep(self, links: Links) -> None:
        """Consume again whenever the channel, the connection or the broker's consumer is gone."""
        while True:
            await self._ended.wait()
            self._active = False
            log.warning("consuming of queue '%s' was interrupted", self._name)
            waits = links.backoff()
            while not self._active:
                link = await links.wait_link()
                try:
                    await self._drop_channel()
                    # Asked first on another channel, and only then consumed.
                    await queue_info(link, self._name)
                    await self._open(link)
                except BrokerError as error:
                    heed_cancellation()
                    log.warning("cannot consume queue '%s' again yet: %s", self._name, error)
                    await asyncio.sleep(next(waits))
            heed_cancellation()
            log.info("consuming queue '%s' again", self._name)

    async def _open(self, link: Link) -> None:
        with translated(f"cannot consume queue '{self._name}'"):
            async with asyncio.timeout(TIMEOUT):
                channel = await link.channel(confirms=False)
                try:
                    await self._consume(link, channel)
                except BaseException:
                    self._forget()
                    if not channel.is_closed and link.up:
                        await channel.close()
                    raise
        self._active = not self._ended.is_set()

    async def _consume(self, link: Link, channel: Channel) -> None:
        self._ended = ended = asyncio.Event()
        self._generation += 1
        self._channel = channel
        channel.closing.add_done_callback(lambda closing: self._channel_closed(closing, ended))
        channel.on_consumer_cancel_callbacks.add(lambda _frame: ended.set())
        await channel.basic_qos(prefetch_count=self._prefetch)
        self._intake = intake = Intake(
            link.tap, channel.number, self._name, self._generation, self._prefetch, self._on_deliveries
        )
        answer = await channel.basic_consume(
            self._name,
            _never,
            no_ack=self._no_ack,
            exclusive=self._exclusive,
            consumer_tag=self._tag or None,
        )
        self._live_tag = answer.consumer_tag or self._tag
        intake.begin()

    def _channel_closed(self, closing: asyncio.Future[Any], ended: asyncio.Event) -> None:
        if not closing.cancelled() and (error := closing.exception()) and self._wanted:
            log.debug("the channel of queue '%s' closed: %r", self._name, error)
        if ended is self._ended:
            self._active = False
        ended.set()

    def _forget(self) -> Channel | None:
        """Write nothing more to the channel; gives it, for closing."""
        channel, self._channel = self._channel, None
        if self._intake is not None:
            self._intake.leave()
            self._intake = None
        return channel

    async def _drop_channel(self) -> None:
        channel = self._forget()
        if channel and not channel.is_closed:
            # The close follows the settlements on the same socket, and its answer says they arrived.
            with contextlib.suppress(BrokerError), translated(f"cannot close the channel of '{self._name}'"):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await channel.close()


async def _never(_message: DeliveredMessage) -> None:
    """Stand in for a callback: the tap takes every delivery before aiormq sees it."""


def _quietly(done: asyncio.Future[Any]) -> None:
    if not done.cancelled():
        done.exception()  # on a dying connection there is nothing to cancel any more
