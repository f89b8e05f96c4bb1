"""The hot path's door to a connection: it takes deliveries and confirms before aiormq, and writes past it.

aiormq lets its user make the transport (`transport_factory`), so this one makes a stream reader that shows
every chunk to `frames` first; what the scanner does not take goes on to aiormq, which still does login, TLS,
channels, declares and heartbeats. Writing goes straight to the transport, in whole frames, so it may mix with
what aiormq writes. Made by `link`, one for each connection; `subscription` and `outlet` listen.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Any, Protocol

from aiormq.connection import TransportFactory

from lunaq_runtime.brokers.amqp.frames import Scanner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import SupportsIndex

    from aiormq.connection import SSLContextProvider
    from yarl import URL

    from lunaq_runtime.brokers.amqp.frames import Event, Record

_HEARTBEAT = b"\x08\0\0\0\0\0\0\xce"
_SIGN_OF_LIFE = 1.0
"""Seconds after which taken traffic is shown to aiormq as a heartbeat: it would hear nothing otherwise."""

PIECE = 8 * 1024
"""Bytes that the next chunk of a busy connection should have at least. Many small ones cost more than they
bring: each wakes the loop, which takes the interpreter from the thread that runs Lua."""

MOST_PIECE = 64 * 1024
"""Bytes that are waited for at most."""

RESTLESS = 32
"""Chunks for which nobody rests once a write that waits for an answer has ended a rest: so would the next."""

REST = 0.001
"""Seconds after which it is read however little has come."""


class Listener(Protocol):
    """Whoever uses a channel past aiormq."""

    def on_closed(self) -> None:
        """The channel, or the connection, is gone: nothing may be written to its number any more."""


class DeliveryListener(Listener, Protocol):
    """A consumer."""

    def on_records(self, records: list[Record]) -> None:
        """Take what one chunk brought; the list is only lent."""


class ConfirmListener(Listener, Protocol):
    """A publisher."""

    def on_events(self, events: list[Event]) -> None:
        """Take what one chunk brought; the list is only lent."""


class Tap(TransportFactory):
    """One connection's bytes, both ways.

    Attributes:
        on_change: called whenever writing becomes possible again, and when the broker blocks or unblocks.
    """

    def __init__(self) -> None:
        self.on_change: list[Callable[[], None]] = []
        self._scanner = Scanner()
        self._consumers: dict[int, tuple[list[Record], DeliveryListener | None]] = {}
        self._publishers: dict[int, tuple[list[Event], ConfirmListener | None]] = {}
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        self._reader: asyncio.StreamReader | None = None
        self._paused = False
        self._broken = False
        self._blocked = False
        self._last_sign = 0.0
        self._held: list[bytes] | None = None  # None: nothing is to be kept back
        self._resting: asyncio.TimerHandle | None = None
        self._restless = 0  # chunks for which nobody rests

    @property
    def blocked(self) -> bool:
        """Whether the broker takes no publishes at the moment (`connection.blocked`)."""
        return self._blocked

    @property
    def writable(self) -> bool:
        """Whether the socket takes more; what is written all the same is kept in memory."""
        return not (self._paused or self._transport is None or self._transport.is_closing())

    async def create(
        self, url: URL, *, ssl_context_provider: SSLContextProvider | None = None, **options: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect; aiormq calls it. `options` are those of `loop.create_connection`."""
        loop = self._loop
        tls = None
        if url.scheme == "amqps" and ssl_context_provider is not None:
            tls = await ssl_context_provider.get_context()
        self._reader = reader = _Reader(self, loop)
        protocol = _Protocol(self, reader, loop)
        transport, _ = await loop.create_connection(
            lambda: protocol, url.host or "localhost", url.port or 5672, ssl=tls, **options
        )
        self._transport = transport
        if not transport.is_closing():
            # One of our own, closed by `lost`: uvloop would make a new object for each option that is set.
            self._socket = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    def agree(self, frame_max: int) -> None:
        """Set the longest frame the broker may send, as agreed at login; 0 is no limit."""
        self._scanner.frame_max = frame_max

    def consume(self, channel: int, listener: DeliveryListener) -> None:
        """Give all deliveries on an open channel to `listener`, until it is closed."""
        records = self._scanner.deliveries.setdefault(channel, [])
        self._consumers[channel] = records, listener

    def confirm(self, channel: int, listener: ConfirmListener) -> None:
        """Give all confirms and returns on an open channel to `listener`, until it is closed."""
        events = self._scanner.confirms.setdefault(channel, [])
        self._publishers[channel] = events, listener

    def leave(self, channel: int, listener: Listener) -> None:
        """Stop telling `listener`; what still comes is dropped, for aiormq would choke on it."""
        self.release()  # aiormq may be about to close the channel
        if channel in self._consumers and self._consumers[channel][1] is listener:
            self._consumers[channel] = self._consumers[channel][0], None
        if channel in self._publishers and self._publishers[channel][1] is listener:
            self._publishers[channel] = self._publishers[channel][0], None

    def write(self, frames: bytes, *, answer: bool = True) -> None:
        """Write whole frames; into the void once the connection is lost.

        `answer`: whether somebody waits for what the broker says to it, which ends a `rest`.
        """
        if self._held is not None:
            self._held.append(frames)
            if not answer:
                return
            frames, self._held = b"".join(self._held), None
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frames)
            if answer and self._resting:
                self._read_on()
                self._restless = RESTLESS

    def hold(self) -> None:
        """Keep back what needs no answer: in this turn of the loop follows a write that does, or `release`.

        Each write is a system call, and wakes the connection's process at the broker.
        """
        if self._held is None:
            self._held = []

    def release(self) -> None:
        """Write what is kept back."""
        held, self._held = self._held, None
        if held:
            self.write(b"".join(held), answer=False)

    def rest(self, size: int) -> None:
        """Hear of the next chunk only once it has `size` bytes, or a moment has passed; see `RESTLESS`."""
        if self._restless:
            self._restless -= 1
        elif self._resting is None and self._wake_for(min(max(size, PIECE), MOST_PIECE)):
            self._resting = self._loop.call_later(REST, self._read_on)

    def received(self, data: bytes) -> bytes:
        """Take what the socket brought and return what is aiormq's; raises nothing."""
        if self._broken:
            return b""
        try:
            others = self._scanner.feed(data)
        except Exception as error:  # noqa: BLE001 - whatever it is, the stream is beyond repair
            self._break(error)
            return b""
        if self._publishers:
            self._tell_publishers()
        if self._consumers:
            self._tell_consumers()
        if self._scanner.closed:
            self._tell_closed()
        if self._scanner.blocked != self._blocked:
            self._blocked = self._scanner.blocked
            self.changed()
        return others or self._sign_of_life()

    def paused(self, *, paused: bool) -> None:
        """Note that the socket takes no more, or takes more again."""
        self._paused = paused
        if not paused:
            self.changed()

    def lost(self) -> None:
        """Tell everybody that the connection is gone."""
        if self._socket:
            self._socket.close()
            self._socket = None
        self._lose()
        self.changed()

    def changed(self) -> None:
        """Call whoever waits for a change."""
        for call in list(self.on_change):
            guarded(call)

    def _read_on(self) -> None:
        if self._resting:
            self._resting.cancel()
            self._resting = None
            self._wake_for(1)

    def _wake_for(self, size: int) -> bool:
        """Ask the kernel to wake us for so many bytes; false where it cannot."""
        if self._socket is None:
            return False
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
        except OSError:
            return False
        return True

    def _tell_publishers(self) -> None:
        for events, listener in list(self._publishers.values()):
            if events:
                if listener is not None:
                    guarded(listener.on_events, events)
                events.clear()

    def _tell_consumers(self) -> None:
        for records, listener in list(self._consumers.values()):
            if records:
                if listener is not None:
                    guarded(listener.on_records, records)
                records.clear()

    def _tell_closed(self) -> None:
        closed, self._scanner.closed = self._scanner.closed, []
        for channel in closed:
            self._scanner.deliveries.pop(channel, None)
            self._scanner.confirms.pop(channel, None)
            for _, listener in (
                self._consumers.pop(channel, (None, None)),
                self._publishers.pop(channel, (None, None)),
            ):
                if listener is not None:
                    guarded(listener.on_closed)

    def _lose(self) -> None:
        self._scanner.closed = [*self._consumers, *self._publishers]
        self._tell_closed()

    def _break(self, error: Exception) -> None:
        self._broken = True
        # Confirms are true; deliveries are not acknowledged, so the broker sends them again.
        self._tell_publishers()
        self._lose()
        if self._reader is not None:
            # aiormq's reader then ends the connection.
            self._reader.set_exception(ConnectionError(f"the broker sent what is not AMQP: {error}"))

    def _sign_of_life(self) -> bytes:
        if not (self._consumers or self._publishers):
            return b""
        now = self._loop.time()
        if now - self._last_sign < _SIGN_OF_LIFE:
            return b""
        self._last_sign = now
        return _HEARTBEAT


class _Reader(asyncio.StreamReader):
    """What aiormq reads from."""

    def __init__(self, tap: Tap, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._tap = tap

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        super().feed_data(self._tap.received(bytes(data)))


class _Protocol(asyncio.StreamReaderProtocol):
    """What the transport calls."""

    def __init__(self, tap: Tap, reader: _Reader, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self._tap = tap

    def pause_writing(self) -> None:
        super().pause_writing()
        self._tap.paused(paused=True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._tap.paused(paused=False)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._tap.lost()


def guarded(call: Callable[..., object], *args: object) -> None:
    """Call it; what it raises is the loop's to report, and must not stop the connection."""
    try:
        call(*args)
    except Exception as error:  # noqa: BLE001 - a defect above is none of the connection
        report(call, error)


def report(call: Callable[..., object], error: Exception) -> None:
    """Have the loop report what `call` raised."""
    context = {"message": f"{getattr(call, '__qualname__', call)} raised", "exception": error}
    asyncio.get_running_loop().call_exception_handler(context)
