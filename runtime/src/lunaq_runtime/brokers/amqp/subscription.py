"""A consumer on one queue, through reconnects, closed channels and deleted queues.

The hot path stands here alone: deliveries come in batches and leave in batches (`settle`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Protocol

from aiormq.abc import ChannelFrame
from pamqp import commands

from lunaq_runtime.brokers.amqp.declare import TIMEOUT, queue_info
from lunaq_runtime.brokers.amqp.errors import translated
from lunaq_runtime.brokers.amqp.link import CLOSE_TIMEOUT
from lunaq_runtime.brokers.amqp.properties import from_amqp
from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.message import Delivery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from aiormq.abc import DeliveredMessage
    from aiormq.channel import Channel

    from lunaq_runtime.brokers.amqp.link import Link

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
        self._outstanding: dict[int, None] = {}
        self._batch: list[Delivery] = []
        self._outbox: list[commands.Basic.Ack | commands.Basic.Nack] = []
        self._flushing: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def active(self) -> bool:
        return self._active

    def alive(self, delivery: Delivery) -> bool:
        channel = self._channel
        return channel is not None and not channel.is_closed and delivery.generation == self._generation

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
        channel = self._channel
        if self._no_ack or channel is None or channel.is_closed:
            return
        frames = self._settlements(self._mine(ack), self._mine(requeue))
        if not frames:
            return
        if not self._outbox and self._flushing is None:
            with contextlib.suppress(asyncio.QueueFull):
                channel.write_queue.put_nowait(ChannelFrame.marshall(channel.number, frames))
                return
        self._outbox += frames
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush(channel))

    async def cancel(self) -> None:
        self._wanted = False
        if self._keeper:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        channel = self._channel
        if channel and self._active and not channel.is_closed:
            # On a dying connection there is nothing to cancel any more.
            with contextlib.suppress(BrokerError), translated(f"cannot cancel consuming '{self._name}'"):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await channel.basic_cancel(self._live_tag)
        self._active = False
        self._hand_over()

    async def close(self) -> None:
        await self.cancel()
        if self._flushing:
            await asyncio.gather(self._flushing, return_exceptions=True)
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
                    log.warning("cannot consume queue '%s' again yet: %s", self._name, error)
                    await asyncio.sleep(next(waits))
            log.info("consuming queue '%s' again", self._name)

    async def _open(self, link: Link) -> None:
        with translated(f"cannot consume queue '{self._name}'"):
            async with asyncio.timeout(TIMEOUT):
                channel = await link.channel(confirms=False)
                try:
                    await self._consume(channel)
                except BaseException:
                    self._forget(channel)
                    if not channel.is_closed and link.up:
                        await channel.close()
                    raise
        self._active = not self._ended.is_set()

    async def _consume(self, channel: Channel) -> None:
        self._ended = ended = asyncio.Event()
        self._generation += 1
        generation = self._generation
        self._outstanding.clear()
        self._outbox.clear()
        self._channel = channel
        channel.closing.add_done_callback(lambda closing: self._channel_closed(closing, ended))
        channel.on_consumer_cancel_callbacks.add(lambda _frame: ended.set())
        await channel.basic_qos(prefetch_count=self._prefetch)

        async def arrived(message: DeliveredMessage) -> None:
            self._arrived(message, generation)

        answer = await channel.basic_consume(
            self._name,
            arrived,
            no_ack=self._no_ack,
            exclusive=self._exclusive,
            consumer_tag=self._tag or None,
        )
        self._live_tag = answer.consumer_tag or self._tag

    def _channel_closed(self, closing: asyncio.Future[Any], ended: asyncio.Event) -> None:
        if not closing.cancelled() and (error := closing.exception()) and self._wanted:
            log.debug("the channel of queue '%s' closed: %r", self._name, error)
        if ended is self._ended:
            self._active = False
        ended.set()

    def _arrived(self, message: DeliveredMessage, generation: int) -> None:
        if generation != self._generation:
            return
        tag = message.delivery_tag or 0
        if not self._no_ack:
            self._outstanding[tag] = None
        if not self._batch:
            asyncio.get_running_loop().call_soon(self._hand_over)
        self._batch.append(
            Delivery(
                queue=self._name,
                tag=tag,
                body=message.body,
                properties=from_amqp(message.header.properties),
                redelivered=bool(message.redelivered),
                exchange=message.exchange or "",
                routing_key=message.routing_key or "",
                generation=generation,
            )
        )

    def _hand_over(self) -> None:
        """Deliver what arrived in this turn of the loop; what the callback raises is the loop's to report."""
        batch, self._batch = self._batch, []
        batch = [delivery for delivery in batch if delivery.generation == self._generation]
        if not batch:
            return
        try:
            self._on_deliveries(batch)
        except Exception as error:  # noqa: BLE001 - a defect above must not stop the connection
            context = {"message": f"on_deliveries of queue '{self._name}' raised", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)

    def _mine(self, deliveries: Sequence[Delivery]) -> set[int]:
        """Pick the tags that this connection still waits for; another would close the channel."""
        return {
            delivery.tag
            for delivery in deliveries
            if delivery.generation == self._generation and delivery.tag in self._outstanding
        }

    def _settlements(
        self, ack: set[int], requeue: set[int]
    ) -> list[commands.Basic.Ack | commands.Basic.Nack]:
        """Say it in few frames: one `multiple` ack up to the first open one, the rest single."""
        frames: list[commands.Basic.Ack | commands.Basic.Nack] = []
        # Nacks go first and singly: a later `multiple` ack must not cover them.
        for tag in sorted(requeue):
            del self._outstanding[tag]
            frames.append(commands.Basic.Nack(delivery_tag=tag, multiple=False, requeue=True))
        ack -= requeue
        covered = []
        for tag in self._outstanding:
            if tag not in ack:
                break
            covered.append(tag)
        if covered:
            frames.append(commands.Basic.Ack(delivery_tag=covered[-1], multiple=len(covered) > 1))
        rest = sorted(ack.difference(covered))
        frames += [commands.Basic.Ack(delivery_tag=tag, multiple=False) for tag in rest]
        for tag in ack:
            del self._outstanding[tag]
        return frames

    async def _flush(self, channel: Channel) -> None:
        """Write what did not fit into aiormq's queue, in order."""
        try:
            while self._outbox and not channel.is_closed:
                frames, self._outbox = self._outbox, []
                await channel.write_queue.put(ChannelFrame.marshall(channel.number, frames))
        finally:
            self._flushing = None

    def _forget(self, channel: Channel) -> None:
        if self._channel is channel:
            self._channel = None

    async def _drop_channel(self) -> None:
        channel, self._channel = self._channel, None
        if channel and not channel.is_closed:
            # The close follows the settlements through the same queue, and its answer says they arrived.
            with contextlib.suppress(BrokerError), translated(f"cannot close the channel of '{self._name}'"):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await channel.close()
