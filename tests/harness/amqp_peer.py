"""A broker's end of AMQP connections, played by a test: it answers as RabbitMQ does, or as it is told.

It is as strict as RabbitMQ about what ends a connection: a frame on a channel that is not open, an unknown
delivery tag, a frame longer than agreed. Such an offence is noted, and the connection dropped.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pamqp import commands, frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader, ProtocolHeader
from pamqp.heartbeat import Heartbeat

from harness.waiting import eventually

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable


_ANSWERS: dict[type, Callable[[], Any]] = {
    commands.Confirm.Select: commands.Confirm.SelectOk,
    commands.Basic.Qos: commands.Basic.QosOk,
    commands.Exchange.Declare: commands.Exchange.DeclareOk,
}


@dataclass
class Publish:
    """A message the peer was sent: `tag` is its number on the channel."""

    channel: int
    tag: int
    exchange: str
    routing_key: str
    properties: commands.Basic.Properties
    body: bytes


@dataclass
class Channel:
    """What the peer knows of an open channel."""

    published: int = 0
    delivered: int = 0
    outstanding: dict[int, bytes] = field(default_factory=dict)
    consumer: str = ""


@dataclass
class _Arriving:
    publish: commands.Basic.Publish
    header: ContentHeader | None = None
    body: bytes = b""


class Connection:
    """One accepted connection; `say` and its kin write at once."""

    def __init__(self, peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peer = peer
        self.channels: dict[int, Channel] = {}
        self.publishes: list[Publish] = []
        self.settled: list[tuple[str, bytes]] = []
        self.frames = 0
        self.longest = 0
        self._reader = reader
        self._writer = writer
        self._arriving: dict[int, _Arriving] = {}
        self._closing: set[int] = set()
        self._reading = asyncio.Event()
        self._reading.set()

    # What a test does

    def say(self, channel: int, *frames: Any) -> None:
        """Send frames."""
        self.raw(b"".join(frame.marshal(one, channel) for one in frames))

    def raw(self, data: bytes) -> None:
        """Send bytes."""
        self._writer.write(data)

    def deliver(self, channel: int, *bodies: bytes, cut: int = 0) -> None:
        """Send messages in one write, without the last `cut` bytes."""
        self.raw(b"".join(self.delivery(channel, body) for body in bodies)[: -cut or None])

    def delivery(self, channel: int, body: bytes) -> bytes:
        """Make the frames of the channel's next delivery."""
        state = self.channels[channel]
        state.delivered += 1
        state.outstanding[state.delivered] = body
        method = commands.Basic.Deliver(state.consumer, state.delivered, False, "x", "k")
        pieces = [ContentBody(body[at : at + 100_000]) for at in range(0, len(body), 100_000)]
        return b"".join(
            frame.marshal(one, channel) for one in (method, ContentHeader(body_size=len(body)), *pieces)
        )

    def confirm(self, publish: Publish, *, multiple: bool = False, nack: bool = False) -> None:
        """Confirm or refuse a publish."""
        method = commands.Basic.Nack if nack else commands.Basic.Ack
        self.say(publish.channel, method(delivery_tag=publish.tag, multiple=multiple))

    def give_back(self, publish: Publish, **changes: Any) -> None:
        """Return a publish as unroutable; `changes` are to its properties."""
        for name, value in changes.items():
            setattr(publish.properties, name, value)
        self.say(
            publish.channel,
            commands.Basic.Return(312, "NO_ROUTE", publish.exchange, publish.routing_key),
            ContentHeader(body_size=len(publish.body), properties=publish.properties),
            *([ContentBody(publish.body)] if publish.body else []),
        )

    def close_channel(self, channel: int, code: int, text: str) -> None:
        """Close a channel, as over a refusal."""
        self._closing.add(channel)
        self.say(channel, commands.Channel.Close(code, text, 60, 40))

    def abort(self) -> None:
        """Drop the connection without a word."""
        self._writer.transport.abort()

    def stop_reading(self) -> None:
        """Take nothing more from the socket, as a broker does that is out of memory."""
        self._reading.clear()

    def go_on(self) -> None:
        """Read again."""
        self._reading.set()

    @property
    def consuming(self) -> int:
        """The channel that consumes; 0 if none does."""
        return next((number for number, one in self.channels.items() if one.consumer), 0)

    # What the peer does by itself

    async def serve(self) -> None:
        """Answer until either side ends."""
        try:
            assert await self._reader.readexactly(8) == ProtocolHeader().marshal()
            self.say(0, commands.Connection.Start(server_properties=self.peer.properties))
            async for number, one in self._frames():
                await self._take(number, one)
        except (EOFError, ConnectionError):
            return
        finally:
            self._writer.close()

    async def _frames(self) -> Any:
        while True:
            head = await self._reader.readexactly(7)
            size = int.from_bytes(head[3:7])
            rest = await self._reader.readexactly(size + 1)
            await self._reading.wait()
            self.frames += 1
            self.longest = max(self.longest, size + 8)
            _, number, one = frame.unmarshal(head + rest)
            yield number, one

    async def _take(self, number: int, one: Any) -> None:
        match one:
            case commands.Connection.StartOk():
                self.say(0, commands.Connection.Tune(2047, self.peer.frame_max, 0))
            case commands.Connection.Open():
                self.say(0, commands.Connection.OpenOk())
                self.peer.connections.append(self)
            case commands.Connection.Close():
                self.say(0, commands.Connection.CloseOk())
                await self._writer.drain()
                self._writer.close()
            case commands.Connection.TuneOk() | commands.Connection.CloseOk() | Heartbeat():
                pass
            case commands.Channel.Open():
                self.channels[number] = Channel()
                self.say(number, commands.Channel.OpenOk())
            case _ if number not in self.channels:
                self._offence(f"{one.name} on channel {number}, which is not open")
            case commands.Channel.Close():
                del self.channels[number]
                self.say(number, commands.Channel.CloseOk())
            case commands.Channel.CloseOk():
                self._closing.discard(number)
                del self.channels[number]
            case _ if number in self._closing:
                pass  # RabbitMQ drops what comes before the answer to its close
            case _:
                self._on_channel(number, self.channels[number], one)

    def _on_channel(self, number: int, channel: Channel, one: Any) -> None:
        match one:
            case commands.Basic.Publish():
                self._arriving[number] = _Arriving(one)
            case ContentHeader() | ContentBody():
                self._content(number, channel, one)
            case commands.Basic.Ack() | commands.Basic.Nack():
                self._settle(channel, one)
            case commands.Basic.Consume():
                channel.consumer = one.consumer_tag
                self.say(number, commands.Basic.ConsumeOk(one.consumer_tag))
            case commands.Basic.Cancel():
                channel.consumer = ""
                self.say(number, commands.Basic.CancelOk(one.consumer_tag))
            case commands.Exchange.Declare() if one.exchange in self.peer.missing:
                self.close_channel(number, 404, f"NOT_FOUND - no exchange '{one.exchange}' in vhost '/'")
            case commands.Queue.Declare():
                self.say(number, commands.Queue.DeclareOk(one.queue, 0, 0))
            case _:
                self.say(number, _ANSWERS[type(one)]())

    def _content(self, number: int, channel: Channel, one: ContentHeader | ContentBody) -> None:
        arriving = self._arriving[number]
        if isinstance(one, ContentHeader):
            arriving.header = one
        else:
            arriving.body += one.value
        header = arriving.header
        assert header is not None
        if len(arriving.body) == header.body_size:
            channel.published += 1
            publish = arriving.publish
            made = Publish(
                number,
                channel.published,
                publish.exchange,
                publish.routing_key,
                header.properties,
                arriving.body,
            )
            self.publishes.append(made)
            if self.peer.on_publish:
                self.peer.on_publish(self, made)

    def _settle(self, channel: Channel, one: Any) -> None:
        if one.delivery_tag not in channel.outstanding:
            self._offence(f"unknown delivery tag {one.delivery_tag}")
            return
        tags = (
            [tag for tag in channel.outstanding if tag <= one.delivery_tag]
            if one.multiple
            else [one.delivery_tag]
        )
        kind = "ack" if isinstance(one, commands.Basic.Ack) else "requeue"
        self.settled += [(kind, channel.outstanding.pop(tag)) for tag in tags]

    def _offence(self, text: str) -> None:
        self.peer.offences.append(text)
        self.abort()


class Peer:
    """Listens on 127.0.0.1.

    Attributes:
        connections: those that have logged in, in order.
        on_publish: called at each publish; confirms nothing by itself.
        missing: exchanges that do not exist.
        offences: what RabbitMQ would have ended the connection for.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, frame_max: int = 131_072) -> None:
        capabilities = {"publisher_confirms": True, "basic.nack": True, "consumer_cancel_notify": True}
        self.properties = {"product": "RabbitMQ", "version": "0", "capabilities": capabilities}
        self.frame_max = frame_max
        self.connections: list[Connection] = []
        self.on_publish: Callable[[Connection, Publish], None] | None = None
        self.missing: set[str] = set()
        self.offences: list[str] = []
        self._tls = tls
        self._tasks: dict[asyncio.Task[None], Connection] = {}
        self._server: asyncio.Server | None = None

    @property
    def uri(self) -> str:
        """Where to connect to."""
        assert self._server is not None
        scheme = "amqps" if self._tls else "amqp"
        return f"{scheme}://u:p@localhost:{self._server.sockets[0].getsockname()[1]}/"

    @property
    def last(self) -> Connection:
        """The newest connection."""
        return self.connections[-1]

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)

    async def close(self) -> None:
        """End everything."""
        assert self._server is not None
        self._server.close()
        for connection in self._tasks.values():
            connection.go_on()
            connection.abort()
        await asyncio.gather(*self._tasks)

    async def has(self, condition: Callable[[Connection], object], what: str, number: int = 1) -> Connection:
        """Wait until the newest of at least `number` connections satisfies `condition`."""

        async def true() -> bool:
            return len(self.connections) >= number and bool(condition(self.last))

        await eventually(true, what)
        return self.last

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self, reader, writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = connection
        await connection.serve()
