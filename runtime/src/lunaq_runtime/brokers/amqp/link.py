"""One live connection, from login to loss; `broker` makes the next one.

Everything that lasts only as long as a connection hangs here: its channels and what was probed on it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, cast

from aiormq.connection import Connection
from aiormq.exceptions import AMQPError

from lunaq_runtime.brokers.amqp.errors import translated
from lunaq_runtime.brokers.amqp.tap import Tap
from lunaq_runtime.brokers.base import BrokerError, ServerInfo
from lunaq_runtime.brokers.features import Product, product_of

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

    from aiormq.channel import Channel
    from yarl import URL

_CUT_OFF = "; over TLS, a broker that requires a client certificate, or refuses the one it got, may do so"

CLOSE_TIMEOUT = 5.0
"""Seconds for an orderly goodbye, before the connection is simply dropped."""


class Link:
    """A connection that is up, or was."""

    def __init__(self, connection: Connection, tap: Tap) -> None:
        self.connection = connection
        self.tap = tap
        self.lost = asyncio.Event()
        closing = connection.closing
        closing.add_done_callback(self._on_closing)

    @property
    def up(self) -> bool:
        """Whether it still is."""
        return not self.lost.is_set() and self.connection.is_opened

    @property
    def server(self) -> ServerInfo:
        """What the broker said of itself."""
        properties = cast("dict[str, Any]", self.connection.server_properties or {})
        return ServerInfo(str(properties.get("product", "")), str(properties.get("version", "")))

    @property
    def product(self) -> Product:
        """What kind of broker it is."""
        return product_of(self.server.product)

    @property
    def frame_max(self) -> int:
        """The most bytes of a frame, as agreed at login; 0 is no limit."""
        return self.connection.connection_tune.frame_max or 0

    async def channel(self, *, confirms: bool) -> Channel:
        """Open a channel."""
        if not self.up:
            raise BrokerError("connection", "the connection to the broker was lost")
        return cast("Channel", await self.connection.channel(publisher_confirms=confirms))

    @contextlib.asynccontextmanager
    async def short_channel(
        self,
        what: str,
        seconds: float,
        *,
        confirms: bool = False,
    ) -> AsyncIterator[Channel]:
        """Lend a channel of its own, so that a refusal, which closes it, harms nobody else."""
        with translated(what):
            async with asyncio.timeout(seconds):
                channel = await self.channel(confirms=confirms)
                try:
                    yield channel
                finally:
                    if not channel.is_closed and self.up:
                        async with asyncio.timeout(CLOSE_TIMEOUT):
                            await channel.close()

    @contextlib.asynccontextmanager
    async def kept_channel(self, what: str, seconds: float, *, confirms: bool) -> AsyncIterator[Channel]:
        """Open a channel to keep; closed again only if what is done inside fails or takes too long."""
        with translated(what):
            async with asyncio.timeout(seconds):
                channel = await self.channel(confirms=confirms)
                try:
                    yield channel
                except BaseException:
                    if not channel.is_closed and self.up:
                        async with asyncio.timeout(CLOSE_TIMEOUT):
                            await channel.close()
                    raise

    async def close(self) -> None:
        """Say goodbye, or drop the connection where the broker does not answer."""
        self.tap.release()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self.connection.close()
        self.lost.set()

    def _on_closing(self, closing: asyncio.Future[Any]) -> None:
        if not closing.cancelled():
            closing.exception()
        self.lost.set()


async def open_link(
    url: URL,
    vhost: str,
    what: str,
    seconds: float,
    tls: ssl.SSLContext | None,
) -> Link:
    """Connect and log in within `seconds`, or raise BrokerError; `what` names the place, for texts."""
    tap = Tap()
    connection = Connection(url, context=tls, client_properties={"product": "Lunaq"}, transport_factory=tap)
    connection.vhost = vhost
    try:
        with translated(what):
            async with asyncio.timeout(seconds):
                await connection.connect()
    except BrokerError as error:
        # The alert that says why may be lost in the reset that follows it.
        if tls is not None and ("reset" in str(error) or "unexpectedly closed" in str(error)):
            raise BrokerError(error.reason, f"{error}{_CUT_OFF}") from error
        raise
    try:
        await _require_confirms(connection, what, seconds)
    except BaseException:
        await connection.close()
        raise
    link = Link(connection, tap)
    tap.agree(link.frame_max)
    return link


async def _require_confirms(connection: Connection, what: str, seconds: float) -> None:
    """Refuse a broker without publisher confirms; one that announces nothing is asked."""
    properties = cast("dict[str, Any]", connection.server_properties)
    capabilities = properties.get("capabilities")
    refusal = BrokerError(
        "unsupported",
        f"{what}: the broker offers no publisher confirms, without which a message could be lost unseen: "
        "use one of docs/brokers.md",
    )
    if capabilities:
        if not capabilities.get("publisher_confirms") or not capabilities.get("basic.nack"):
            raise refusal
        return
    if not product_of(str(properties.get("product", ""))).tested:
        raise refusal
    properties["capabilities"] = {"publisher_confirms": True, "basic.nack": True}
    try:
        async with asyncio.timeout(seconds):
            channel = await connection.channel(publisher_confirms=True)
            await channel.close()
    except (AMQPError, NotImplementedError) as error:
        raise refusal from error
    except TimeoutError as error:
        raise BrokerError("timeout", f"{what}: no answer in time to confirm.select") from error
