"""AmqpBroker: the connection, kept up; everything else is handed to the modules beside it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from lunaq_runtime.brokers.amqp import declare
from lunaq_runtime.brokers.amqp.backoff import full_jitter
from lunaq_runtime.brokers.amqp.endpoint import DEFAULT_CONNECTION_TIMEOUT, DEFAULT_HEARTBEAT, Endpoint
from lunaq_runtime.brokers.amqp.errors import heed_cancellation
from lunaq_runtime.brokers.amqp.link import CLOSE_TIMEOUT, open_link
from lunaq_runtime.brokers.amqp.publishing import Publisher
from lunaq_runtime.brokers.amqp.subscription import AmqpSubscription
from lunaq_runtime.brokers.amqp.watch import watch_consumers
from lunaq_runtime.brokers.base import BrokerError, QueueInfo, ServerInfo
from lunaq_runtime.brokers.features import Feature

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

    from lunaq_runtime.brokers.amqp.link import Link
    from lunaq_runtime.message import Delivery, Outgoing
    from lunaq_runtime.topology import Topology

log = logging.getLogger(__name__)


class AmqpBroker:
    """A Broker over AMQP 0-9-1.

    `credentials` returns user name and password and is asked at every connect, so that rotated ones are
    picked up; without it, those of the URL are used. `tls` goes with `amqps`, and is asked likewise where it
    is a callable. Times are in seconds and win
    over the URL's query parameters.
    """

    def __init__(
        self,
        url: str,
        *,
        credentials: Callable[[], tuple[str, str]] | None = None,
        connection_name: str = "",
        heartbeat: float | None = None,
        connection_timeout: float | None = None,
        reconnect_delay: float = 1.0,
        reconnect_max_delay: float = 30.0,
        tls: ssl.SSLContext | Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        self._endpoint = Endpoint.parse(url)
        self._credentials = credentials
        self._connection_name = connection_name
        self._heartbeat = _first(heartbeat, self._endpoint.heartbeat, DEFAULT_HEARTBEAT)
        self._connection_timeout = _first(
            connection_timeout, self._endpoint.connection_timeout, DEFAULT_CONNECTION_TIMEOUT
        )
        self._reconnect = (reconnect_delay, reconnect_max_delay)
        self._tls = tls
        self._link: Link | None = None
        self._publisher_once: Publisher | None = None
        self._up = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._subscriptions: list[AmqpSubscription] = []
        self._closed = False
        self._server = ServerInfo()
        self.reconnects = 0

    @property
    def connected(self) -> bool:
        return self._link is not None and self._link.up

    @property
    def server(self) -> ServerInfo:
        return self._server

    async def connect(self) -> None:
        self._require_open()
        if self._keeper is None:
            await self._open()
            self._keeper = asyncio.create_task(self._keep(), name="amqp connection")

    async def declare(self, topology: Topology) -> None:
        await declare.declare(self._require_link(), topology)

    async def delete_queue(self, name: str) -> None:
        await declare.delete_queue(self._require_link(), name)

    async def delete_exchange(self, name: str) -> None:
        await declare.delete_exchange(self._require_link(), name)

    async def queue_info(self, name: str) -> QueueInfo:
        return await declare.queue_info(self._require_link(), name)

    async def exchange_exists(self, name: str) -> bool:
        return await declare.exchange_exists(self._require_link(), name)

    async def consume(
        self,
        queue: str,
        *,
        prefetch: int,
        on_deliveries: Callable[[list[Delivery]], None],
        consumer_tag: str = "",
        exclusive: bool = False,
        no_ack: bool = False,
    ) -> AmqpSubscription:
        link = self._require_link()
        subscription = AmqpSubscription(
            queue,
            on_deliveries,
            prefetch=prefetch,
            consumer_tag=consumer_tag,
            exclusive=exclusive,
            no_ack=no_ack,
        )
        self._publisher.consumed(prefetch)
        await subscription.start(self, link)
        self._subscriptions.append(subscription)
        if self._watch is None and not link.product.has(Feature.CANCEL_NOTICE):
            self._watch = asyncio.create_task(watch_consumers(self, self._subscriptions), name="amqp watch")
        return subscription

    async def publish(self, message: Outgoing, *, timeout: float = 30.0) -> None:  # noqa: ASYNC109
        self._require_open()
        await self._publisher.publish(message, timeout)

    def publish_soon(
        self, message: Outgoing, done: Callable[[BrokerError | None], None], *, timeout: float = 30.0
    ) -> None:
        self._publisher.publish_soon(message, done, timeout)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._publisher.settled(CLOSE_TIMEOUT)
        await asyncio.gather(*(subscription.close() for subscription in self._subscriptions))
        for task in filter(None, (self._keeper, self._watch)):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._link:
            await self._link.close()
        self._publisher.close()
        self._up.clear()

    async def wait_link(self) -> Link:
        """Wait for a connection that is up; subscriptions call it."""
        while True:
            await self._up.wait()
            if self._link and self._link.up:
                return self._link
            # Lost, and the keeper has not run yet.
            await asyncio.sleep(0)

    def backoff(self) -> Iterator[float]:
        """Yield the waits between attempts, in seconds."""
        return full_jitter(*self._reconnect)

    async def _keep(self) -> None:
        """Connect again whenever the connection is lost."""
        while True:
            assert self._link is not None  # noqa: S101 - `connect` set it
            await self._link.lost.wait()
            self._up.clear()
            self._publisher.link_lost()
            log.warning("lost the connection to %s", self._endpoint)
            await self._link.close()
            for wait in self.backoff():
                await asyncio.sleep(wait)
                try:
                    await self._open()
                except BrokerError as error:
                    log.warning("%s", error)
                except Exception:
                    # A defect, of ours or of a library; nobody else would ever connect again.
                    log.exception("cannot connect to %s", self._endpoint)
                else:
                    self.reconnects += 1
                    log.info("connected again to %s", self._endpoint)
                    break
                finally:
                    heed_cancellation()

    async def _open(self) -> None:
        endpoint = self._endpoint
        username, password = endpoint.username, endpoint.password
        if self._credentials is not None:
            try:
                username, password = self._credentials()
            except (OSError, ValueError) as error:
                text = f"cannot connect to {endpoint}: the credentials cannot be read"
                raise BrokerError("connection", f"{text} ({type(error).__name__})") from error
        url = endpoint.url(username, password, self._heartbeat, self._connection_name)
        what = f"cannot connect to {endpoint}"
        tls = self._tls() if callable(self._tls) else self._tls
        self._link = await open_link(url, endpoint.vhost, what, self._connection_timeout, tls)
        self._server = self._link.server
        self._publisher.link_up(self._link)
        self._up.set()

    @property
    def _publisher(self) -> Publisher:
        # Made on first use: a broker may be made before there is a loop.
        if self._publisher_once is None:
            self._publisher_once = Publisher(str(self._endpoint))
        return self._publisher_once

    def _require_open(self) -> None:
        if self._closed:
            raise BrokerError("closed", f"the connection to {self._endpoint} is closed")

    def _require_link(self) -> Link:
        self._require_open()
        if self._link is None or not self._link.up:
            raise BrokerError("connection", f"not connected to {self._endpoint}")
        return self._link


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)
