"""Publishing with confirms over one Link; `broker.publish` is the only caller.

Each exchange's first message goes over a channel of its own, after a passive declare: an exchange that is
missing or forbidden closes the channel, and on the shared one that would take others' confirms with it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiormq.exceptions import DeliveryError, PublishError

from lunaq_runtime.brokers.amqp.errors import broker_error, translated
from lunaq_runtime.brokers.amqp.properties import to_amqp
from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.brokers.wire import check_names

if TYPE_CHECKING:
    from aiormq.channel import Channel

    from lunaq_runtime.brokers.amqp.link import Link
    from lunaq_runtime.brokers.amqp.properties import ExactProperties
    from lunaq_runtime.message import Outgoing


class Publisher:
    """The publish channel of a connection, opened again when the broker closes it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._channel: Channel | None = None
        self._opening = asyncio.Lock()
        self._proven: set[str] = set()
        self._proving: dict[str, asyncio.Lock] = {}
        self._ids: dict[str, asyncio.Event] = {}

    async def publish(self, message: Outgoing, deadline: float) -> None:
        """Publish and await the confirm until `deadline` (loop time); BrokerError as `brokers.base` says."""
        what = f"cannot publish to exchange '{message.exchange}'"
        check_names(message.exchange, message.routing_key)
        properties = to_amqp(message.properties)
        await self._until_unblocked(what, deadline)
        try:
            async with asyncio.timeout_at(deadline):
                with translated(what):
                    await self._through(message, properties, what)
        except TimeoutError as error:
            blocked = not await self._link.unblocked(0)
            why = "the broker blocks publishers (connection.blocked)" if blocked else "no confirm in time"
            raise BrokerError("timeout", f"{what}: {why}") from error

    async def close(self, channel: Channel | None = None) -> None:
        """Close the shared channel."""
        channel = channel or self._channel
        if channel and not channel.is_closed and self._link.up:
            await channel.close()

    async def _until_unblocked(self, what: str, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        while not await self._link.unblocked(min(deadline - loop.time(), 0.5)):
            if not self._link.up:
                raise BrokerError("connection", f"{what}: the connection to the broker was lost")
            if loop.time() >= deadline:
                raise BrokerError("timeout", f"{what}: the broker blocks publishers (connection.blocked)")

    async def _through(self, message: Outgoing, properties: ExactProperties, what: str) -> None:
        exchange = message.exchange
        if exchange not in self._proven:
            async with self._proving.setdefault(exchange, asyncio.Lock()):
                if exchange not in self._proven:
                    await self._first(message, properties, what)
                    return
        try:
            await self._send(await self._shared(), message, properties, what)
        except BrokerError as error:
            # Deleted or forbidden since: look again before the shared channel is used for it once more.
            if error.reason not in ("nacked", "unroutable"):
                self._proven.discard(exchange)
            raise

    async def _first(self, message: Outgoing, properties: ExactProperties, what: str) -> None:
        channel = await self._link.channel(confirms=True)
        try:
            if message.exchange:
                # An empty type, for Qpid compares it even here.
                await channel.exchange_declare(message.exchange, exchange_type="", passive=True)
            await self._send(channel, message, properties, what)
            self._proven.add(message.exchange)
        except BrokerError as error:
            # The broker looked at the message, so the exchange is there and ours to write to.
            if error.reason in ("nacked", "unroutable"):
                self._proven.add(message.exchange)
            raise
        finally:
            if message.exchange in self._proven:
                self._proving.pop(message.exchange, None)
            await self.close(channel)

    async def _shared(self) -> Channel:
        async with self._opening:
            if self._channel is None or self._channel.is_closed:
                self._channel = await self._link.channel(confirms=True)
            return self._channel

    async def _send(
        self, channel: Channel, message: Outgoing, properties: ExactProperties, what: str
    ) -> None:
        # aiormq matches a Basic.Return by the message id alone, so one id is in flight only once.
        message_id = properties.message_id
        while message_id and (other := self._ids.get(message_id)):
            await other.wait()
        done = asyncio.Event()
        if message_id:
            self._ids[message_id] = done
        try:
            await channel.basic_publish(
                message.body,
                exchange=message.exchange,
                routing_key=message.routing_key,
                properties=properties,
                mandatory=True,
                wait=False,
            )
        except PublishError as error:
            text = f"{what}: no queue takes routing key '{message.routing_key}'"
            raise BrokerError("unroutable", text) from error
        except DeliveryError as error:
            raise BrokerError(
                "nacked", f"{what}: the broker refused the message, a queue may be full"
            ) from error
        except Exception as error:
            raise _of_this(broker_error(what, error), message.exchange) from error
        finally:
            done.set()
            if message_id:
                del self._ids[message_id]


def _of_this(error: BrokerError, exchange: str) -> BrokerError:
    """Tell a refusal of this exchange from one of another that closed the shared channel for all."""
    if (
        error.reason in ("queue_not_found", "access_refused")
        and f"exchange '{exchange}'" not in str(error).partition(": ")[2]
    ):
        text = f"cannot publish to exchange '{exchange}': the broker closed the channel over another message"
        return BrokerError("connection", text)
    return error
