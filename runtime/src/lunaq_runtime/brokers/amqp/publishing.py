"""Publishing with confirms, through reconnects; `broker` makes one Publisher and tells it of its links.

A message waits in one of four places until it is sent: for a connection, for its exchange to be proven, for
fewer publishes of its route to be unconfirmed, or for the next turn of the loop, which writes all that has
gathered at once. Each exchange's first message on a connection goes over a channel of its own, after a
passive declare: an exchange that is missing or forbidden closes the channel, and on the shared one that
would take others' confirms with it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import chain
from typing import TYPE_CHECKING

from lunaq_runtime.brokers.amqp import qpid
from lunaq_runtime.brokers.amqp.declare import TIMEOUT
from lunaq_runtime.brokers.amqp.outlet import Outlet
from lunaq_runtime.brokers.amqp.routes import MOST_UNCONFIRMED, Entry, Routes, most_unconfirmed
from lunaq_runtime.brokers.amqp.tap import report
from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.brokers.features import Feature
from lunaq_runtime.brokers.wire import encode_properties, stamp
from lunaq_runtime.message import Stamped

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from typing import Any

    from lunaq_runtime.brokers.amqp.link import Link
    from lunaq_runtime.message import Outgoing, Properties

_NEVER = float("inf")
_NO_LIMIT = 1 << 16
_ANSWERED = ("nacked", "unroutable")
"""Refusals of a message, not of its exchange: the broker has looked at it."""


class Publisher:
    """All messages on their way to one broker; `endpoint` names it in texts.

    Attributes:
        most_unconfirmed: publishes of a route that may be so before others of it are held (`routes`).
    """

    def __init__(self, endpoint: str) -> None:
        self.most_unconfirmed = MOST_UNCONFIRMED
        self._widest = 0
        self._endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self._link: Link | None = None
        self._expirations = self._empty_tables = True  # until a link says what its broker lacks
        self._outlet: Outlet | None = None
        self._outlets: set[Outlet] = set()
        self._proven: set[str] = set()
        self._unlinked: deque[Entry] = deque()
        self._unproven: dict[str, deque[Entry]] = {}
        self._queue: deque[Entry] = deque()
        self._flushing = False
        self._routes = Routes()
        self._pending = 0
        self._idle: asyncio.Future[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = _NEVER
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._change: asyncio.Future[None] | None = None

    def publish_soon(
        self, message: Outgoing, done: Callable[[BrokerError | None], None], timeout: float
    ) -> None:
        """Publish and call `done` once and later, as `brokers.base` says."""
        try:
            if self._closed:
                raise BrokerError("closed", f"the connection to {self._endpoint} is closed")  # noqa: TRY301 - told like all others
            route = self._routes.find(message.exchange, message.routing_key)
            properties = stamp(message) if message.__class__ is Stamped else self._encoded(message.properties)
        except BrokerError as error:
            self._loop.call_soon(done, error)
            return
        deadline = self._loop.time() + timeout
        if deadline < self._alarm_at:
            self._wake_at(deadline)
        self._pending += 1
        entry = Entry(message, route, properties, done, deadline)
        if route.unconfirmed >= self.most_unconfirmed or route.held:
            self._routes.hold(entry)
        else:
            self._sort(entry)

    def _encoded(self, properties: Properties) -> bytes:
        if not self._expirations:
            qpid.refuse_expiration(properties)
        if not self._empty_tables:
            properties = qpid.without_empty_tables(properties)
        return encode_properties(properties)

    def consumed(self, prefetch: int) -> None:
        """Heed how much a consumer on the same broker has at a time; 0 is no limit."""
        self._widest = max(self._widest, prefetch or _NO_LIMIT)
        self.most_unconfirmed = most_unconfirmed(self._widest)

    async def publish(self, message: Outgoing, timeout: float) -> None:  # noqa: ASYNC109
        """Publish and await the confirm; BrokerError as `brokers.base` says."""
        waiter: asyncio.Future[None] = self._loop.create_future()

        def done(error: BrokerError | None) -> None:
            if waiter.done():
                return
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)

        self.publish_soon(message, done, timeout)
        await waiter

    def link_up(self, link: Link) -> None:
        """Send over a new connection, first what has been waiting for it."""
        self._link = link
        self._expirations = link.product.has(Feature.EXPIRATION)
        self._empty_tables = link.product.has(Feature.EMPTY_TABLES)
        self._outlet = None
        self._opening: Link | None = None
        self._proven.clear()
        link.tap.on_change.append(self._changed)
        waiting = [*self._unlinked, *chain(*self._unproven.values()), *self._queue]
        self._unlinked.clear()
        self._unproven = {}
        self._queue.clear()
        for entry in waiting:
            if entry.done is not None:
                self._sort(entry)

    def link_lost(self) -> None:
        """Keep what was not sent for the next connection, and tell what was."""
        self._link = None
        for outlet in list(self._outlets):
            outlet.fail(None)
        self._changed()

    async def settled(self, seconds: float) -> None:
        """Take no more, and wait until every message has been answered, at most `seconds`."""
        self._closed = True
        if self._pending:
            self._idle = self._loop.create_future()
            await asyncio.wait([self._idle], timeout=seconds)

    def close(self) -> None:
        """Tell all that are not answered yet."""
        self._link = None
        for entry in list(self._entries()):
            if entry.done is not None:
                self._resolve(entry, BrokerError("closed", f"{entry.what}: the connection is closed"))
        for task in self._tasks:
            task.cancel()
        if self._alarm:
            self._alarm.cancel()

    def _sort(self, entry: Entry) -> None:
        exchange = entry.route.exchange
        if self._link is None:
            self._unlinked.append(entry)
        elif exchange in self._proven:
            self._queue.append(entry)
            if not self._flushing:
                self._flushing = True
                self._loop.call_soon(self._flush)
                self._link.tap.hold()
        elif exchange in self._unproven:
            self._unproven[exchange].append(entry)
        else:
            self._unproven[exchange] = deque([entry])
            self._spawn(self._prove(self._link, exchange, self._unproven[exchange]))

    def _changed(self) -> None:
        """Go on after the socket, or the broker, took nothing for a while."""
        if self._change is not None and not self._change.done():
            self._change.set_result(None)
        self._flush()

    async def _wait_change(self) -> None:
        if self._change is None or self._change.done():
            self._change = self._loop.create_future()
        await self._change

    def _flush(self) -> None:
        """Send all that has gathered."""
        self._flushing = False
        link, outlet = self._link, self._outlet
        if link is None:
            return
        if self._queue and not link.tap.blocked:
            if outlet is not None and outlet.open:
                outlet.send(self._queue)
            elif self._opening is not link:
                self._opening = link
                self._spawn(self._open_shared(link))
        link.tap.release()

    async def _open_shared(self, link: Link) -> None:
        try:
            outlet = await self._open(link, "cannot open a channel to publish on")
            if self._link is link:
                self._outlet = outlet
        except BrokerError as error:
            # What was not sent yet may wait for the next connection; on this one there is no channel to have.
            if self._link is link and link.up:
                failed, self._queue = self._queue, deque()
                for entry in failed:
                    self._resolve(entry, error)
        finally:
            if self._opening is link:
                self._opening = None
        self._flush()

    async def _prove(self, link: Link, exchange: str, waiting: deque[Entry]) -> None:
        """Send the first message that waits for `exchange`; the next one too, if that was no proof."""
        while waiting and self._link is link:
            entry = waiting[0]
            if entry.done is not None:
                await self._prove_by(link, entry)
            if waiting and waiting[0] is entry:
                waiting.popleft()
        if self._unproven.get(exchange) is waiting and not waiting:
            del self._unproven[exchange]

    async def _prove_by(self, link: Link, entry: Entry) -> None:
        """Send one message over a channel of its own, and wait for the answer."""
        answered: asyncio.Future[None] = self._loop.create_future()
        tell = entry.done
        exchange = entry.route.exchange

        def done(error: BrokerError | None) -> None:
            if not answered.done():
                answered.set_result(None)
            if error is None or error.reason in _ANSWERED:
                self._release(exchange, entry)
            if tell is not None:
                tell(error)

        entry.done = done
        outlet = None
        try:
            outlet = await self._open(link, entry.what, exchange)
            await self._send_alone(link, outlet, entry)
            await answered
        except BrokerError as error:
            self._resolve(entry, error)
        finally:
            if outlet is not None:
                self._spawn(_closed(outlet))

    async def _send_alone(self, link: Link, outlet: Outlet, entry: Entry) -> None:
        queue = deque([entry])
        while queue and entry.done is not None:
            if self._link is not link or not outlet.open:
                raise BrokerError("connection", f"{entry.what}: the connection was lost")
            if not link.tap.blocked:
                outlet.send(queue)
            if queue:
                await self._wait_change()

    def _release(self, exchange: str, prover: Entry) -> None:
        """Let all go that waited for the proof, before anything newer."""
        self._proven.add(exchange)
        waiting = self._unproven.pop(exchange, None)
        if waiting is None:
            return
        released = [entry for entry in waiting if entry is not prover]
        waiting.clear()  # the task that proves looks at it again
        for entry in released:
            self._sort(entry)

    async def _open(self, link: Link, what: str, exchange: str = "") -> Outlet:
        """Open an outlet, after asking for `exchange` on its channel; BrokerErrors begin with `what`."""
        async with link.kept_channel(what, TIMEOUT, confirms=True) as channel:
            if exchange:
                # An empty type, for Qpid compares it even here.
                await channel.exchange_declare(exchange, exchange_type="", passive=True)
        outlet = Outlet(link, channel, self._resolve)
        self._outlets.add(outlet)
        channel.closing.add_done_callback(lambda _closing: self._outlets.discard(outlet))
        return outlet

    def _resolve(self, entry: Entry, error: BrokerError | None) -> None:
        """Tell what became of a message, and send one that was held for it."""
        if entry.done is not None:
            self._tell(entry, entry.done, error)
        route = entry.route
        if route.held and route.unconfirmed < self.most_unconfirmed:
            self._sort(self._routes.next_held(route))

    def _tell(
        self, entry: Entry, done: Callable[[BrokerError | None], None], error: BrokerError | None
    ) -> None:
        entry.done = None
        if error is not None and error.reason not in _ANSWERED:
            # Deleted or forbidden since: look again before the shared channel is used for it once more.
            self._proven.discard(entry.route.exchange)
        self._pending -= 1
        try:
            done(error)
        except Exception as failure:  # noqa: BLE001 - a defect above is none of the connection
            report(done, failure)
        if not self._pending and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _entries(self) -> Iterator[Entry]:
        yield from self._unlinked
        yield from self._queue
        yield from self._routes.held()
        for waiting in self._unproven.values():
            yield from waiting
        for outlet in self._outlets:
            yield from outlet.in_flight()

    def _wake_at(self, when: float) -> None:
        if self._alarm:
            self._alarm.cancel()
        self._alarm_at = when
        self._alarm = self._loop.call_at(when, self._expire)

    def _expire(self) -> None:
        """Give up what is overdue; one alarm serves all messages."""
        self._alarm_at = _NEVER
        self._alarm = None
        now = self._loop.time()
        due = [entry for entry in self._entries() if entry.done is not None and entry.deadline <= now]
        for entry in due:
            self._resolve(entry, self._overdue(entry))
            entry.message = None
        self._unlinked = deque(entry for entry in self._unlinked if entry.done is not None)
        self._queue = deque(entry for entry in self._queue if entry.done is not None)
        self._routes.forget_done()
        for waiting in self._unproven.values():
            left = [entry for entry in waiting if entry.done is not None]
            waiting.clear()
            waiting.extend(left)
        following = min(
            (entry.deadline for entry in self._entries() if entry.done is not None), default=_NEVER
        )
        if following < self._alarm_at:
            self._wake_at(following)

    def _overdue(self, entry: Entry) -> BrokerError:
        link = self._link
        if link is None:
            return BrokerError("connection", f"{entry.what}: not connected to {self._endpoint}")
        blocked = link.tap.blocked
        why = "the broker blocks publishers (connection.blocked)" if blocked else "no confirm in time"
        return BrokerError("timeout", f"{entry.what}: {why}")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _closed(outlet: Outlet) -> None:
    try:
        await outlet.close()
    except Exception:  # noqa: BLE001 - the connection is going, and the channel with it
        return
