"""One consumer's channel on the tap: deliveries in, settlements out. `subscription` makes one per consume."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lunaq_runtime.brokers.amqp.delivery import AmqpDelivery
from lunaq_runtime.brokers.amqp.settlements import FRAME_SIZE, Settlements
from lunaq_runtime.brokers.amqp.tap import MOST_PIECE, guarded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lunaq_runtime.brokers.amqp.frames import Record
    from lunaq_runtime.brokers.amqp.tap import Tap
    from lunaq_runtime.message import Delivery


STASH = 32
"""Settlements of a quorum queue beyond which RabbitMQ keeps further ones back until some are applied."""

BUSY = 4
"""Deliveries that come at once when more are on their way: the next ones may come in larger pieces."""

WIDE = 100
"""Unsettled messages beyond which a broker has no reason to wait for us while reading rests."""

SHARE = 3
"""The part of what may be on its way that the next piece waits for: the rest comes while it is handled."""

LINGER = 1.0
"""Seconds in which what was kept back is applied too: what is left when the channel closes is forgotten."""


class Intake:
    """What an open channel delivers, as one `generation`, and what is said about it.

    Settlements are written at once, past aiormq. They wait while the socket takes no more, kept as tags, so
    that few frames say them all later; and before `begin`, for until then aiormq may close the channel
    by itself, and the broker ends a connection that speaks on a closed channel.
    """

    def __init__(
        self,
        tap: Tap,
        channel: int,
        queue: str,
        generation: int,
        prefetch: int,
        on_deliveries: Callable[[list[Delivery]], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._tap = tap
        self._channel = channel
        self._queue = queue
        self._generation = generation
        self._on_deliveries = on_deliveries
        self._settlements = Settlements(channel, generation)
        self._begun = False
        self._said: asyncio.Future[None] | None = None
        self._said_at = 0.0
        self._said_lately = 0
        self._wide = prefetch == 0 or prefetch >= WIDE
        self._share = prefetch // SHARE if prefetch else MOST_PIECE
        self.open = True
        tap.consume(channel, self)
        tap.on_change.append(self._flush)

    def begin(self) -> None:
        """Say what is settled from now on."""
        self._begun = True
        self._flush()

    def alive(self, delivery: Delivery) -> bool:
        """Whether settling it could still reach the broker."""
        return self.open and delivery.generation == self._generation

    def settle(self, ack: Sequence[Delivery], requeue: Sequence[Delivery]) -> None:
        """Settle deliveries of this channel; others are skipped."""
        self._settlements.add(ack, requeue)
        self._flush()

    async def said(self, seconds: float) -> None:
        """Wait until the socket has taken all that is settled, at most so long, and the broker heeded it.

        RabbitMQ tells nobody when a settlement is applied. After many at once, closing the channel right away
        would put settled messages of a quorum queue back (seen on 3.10: 12 in 12 closes), hence the wait.
        """
        loop = self._loop
        if self.open and self._settlements.unsaid:
            self._said = loop.create_future()
            await asyncio.wait([self._said], timeout=seconds)
        if self.open and self._said_lately > STASH:
            await asyncio.sleep(self._said_at + LINGER - loop.time())

    def leave(self) -> None:
        """Take no more deliveries and write nothing more; the channel is about to be closed."""
        self.open = False
        self._tap.leave(self._channel, self)
        if self._flush in self._tap.on_change:
            self._tap.on_change.remove(self._flush)

    def on_records(self, records: list[Record]) -> None:
        self._settlements.delivered = records[-1][0]
        queue, generation = self._queue, self._generation
        batch: list[Delivery] = [
            AmqpDelivery(queue, generation, tag, redelivered, body, head, at)
            for tag, redelivered, body, head, at in records
        ]
        guarded(self._on_deliveries, batch)
        if self._wide and len(records) >= BUSY:
            _, _, body, head, _ = records[0]
            self._tap.rest(self._share * (len(head) + len(body)))

    def on_closed(self) -> None:
        self.leave()
        self._flush()

    def _flush(self) -> None:
        if self.open and self._begun and self._settlements.unsaid:
            if not self._tap.writable:
                return
            frames = self._settlements.frames()
            self._tap.write(frames, answer=False)
            now = self._loop.time()
            if now - self._said_at > LINGER:
                self._said_lately = 0
            self._said_at = now
            self._said_lately += len(frames) // FRAME_SIZE
        if self._said is not None and not self._said.done():
            self._said.set_result(None)
