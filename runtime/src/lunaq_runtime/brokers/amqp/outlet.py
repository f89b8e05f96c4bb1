"""One channel that publishes with confirms, past aiormq; `publishing` opens and fills it.

The broker numbers publishes from 1 in the order they arrive, and confirms by number. A return has no number:
it belongs to the publish in flight whose message it repeats. Where two are the same in every byte, it is
one of the two that came back either way.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from dataclasses import replace
from struct import Struct
from typing import TYPE_CHECKING, Any

from lunaq_runtime.brokers.amqp import decode
from lunaq_runtime.brokers.amqp.errors import broker_error
from lunaq_runtime.brokers.amqp.frames import ACK, FRAME_OVERHEAD, RETURN
from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.brokers.features import Feature

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aiormq.channel import Channel

    from lunaq_runtime.brokers.amqp.frames import Event
    from lunaq_runtime.brokers.amqp.link import Link
    from lunaq_runtime.brokers.amqp.routes import Entry

log = logging.getLogger(__name__)

_FRAME = Struct(">BHI").pack
_HEADER = Struct(">BHIIQ").pack  # type, channel, size, class and weight, body size
_HEADER_AND_BODY = Struct(">cBHI").pack  # the end of a header frame, the beginning of a body frame
_BASIC = 60 << 16
_END = b"\xce"
_RETURN_TEXT_AT = 13  # frame (7 bytes), class and method (4), code (2)
_SAME = 16
_WRITE_BYTES = 256 * 1024
"""About how much is written at once, before it is looked whether the socket still takes more."""

PORTION = 100
"""Publishes that are told at a time what the broker says of them. A broker may answer a thousand at once, and
waits for what follows from it; so the first acks and publishes leave before the last answer is looked at."""
_ALL = sys.maxsize

Answer = tuple[int, int, int, bytes, bytes]
"""ACK or NACK, the first and the last number, nothing, nothing; or RETURN, where the properties begin,
nothing, the head, the body."""


class Outlet:
    """Publishes in flight on one channel; `resolve` is told how each ended."""

    def __init__(
        self, link: Link, channel: Channel, resolve: Callable[[Entry, BrokerError | None], None]
    ) -> None:
        tap = link.tap
        self._loop = asyncio.get_running_loop()
        self._tap = tap
        self._channel = channel
        self._number = channel.number
        self._longest = (link.frame_max or 1 << 32) - FRAME_OVERHEAD
        # Elsewhere a return follows the refusal of its publish, and would be taken for another's.
        self._returns = link.product.has(Feature.UNROUTABLE)
        self._resolve = resolve
        self._sent = 0
        self._lowest = 1
        self._in_flight: dict[int, Entry] = {}
        self._answers: deque[Answer] = deque()
        self.open = not channel.is_closed
        tap.confirm(self._number, self)
        channel.closing.add_done_callback(self._closed)

    def in_flight(self) -> Iterator[Entry]:
        """Go through what has been sent and not been answered."""
        return iter(self._in_flight.values())

    def send(self, queue: deque[Entry]) -> None:
        """Write from the queue's head until it is empty or the socket takes no more."""
        while queue and self.open and self._tap.writable:
            parts: list[bytes] = []
            size = 0
            while queue and size < _WRITE_BYTES:
                entry = queue.popleft()
                message = entry.message
                if entry.done is not None and message is not None:
                    size += self._frames(entry, message.body, parts)
            self._tap.write(b"".join(parts))

    async def close(self) -> None:
        """Close the channel; nothing is sent any more."""
        self.open = False
        if not self._channel.is_closed:
            await self._channel.close()

    def on_events(self, events: list[Event]) -> None:
        answers = self._answers
        idle = not answers
        for method, tag, many, head, body in events:
            if method == RETURN:
                answers.append((method, many, 0, head, body))
            elif many:
                last = tag or self._sent  # 0 is all there are
                answers.append((method, self._lowest, last, b"", b""))
                self._lowest = max(self._lowest, last + 1)
            else:
                answers.append((method, tag, tag, b"", b""))
        if idle:
            self._take_answers(PORTION)

    def _take_answers(self, most: int) -> None:
        """Tell of some publishes what the broker says of them, and of the others in the loop's next turns."""
        answers, in_flight = self._answers, self._in_flight
        while answers and most > 0:
            method, first, last, head, body = answers.popleft()
            if method == RETURN:
                if self._returns:
                    self._returned(head, first, body)
                continue
            if last - first >= most:
                answers.appendleft((method, first + most, last, head, body))
                last = first + most - 1
            most -= last - first + 1
            for number in range(first, last + 1):
                if entry := in_flight.pop(number, None):
                    entry.route.unconfirmed -= 1
                    confirmed = method == ACK and not entry.returned
                    self._resolve(entry, None if confirmed else _refusal(entry))
        if answers:
            self._loop.call_soon(self._take_answers, PORTION)

    def on_closed(self) -> None:
        # Why is told by aiormq, which reads the broker's text; but nothing may be written from here on.
        self.open = False

    def _frames(self, entry: Entry, body: bytes, parts: list[bytes]) -> int:
        properties, number, length = entry.properties, self._number, len(body)
        header = 12 + len(properties)
        if header > self._longest:
            text = f"{entry.what}: the headers are longer than a frame of this broker ({self._longest} bytes)"
            self._resolve(entry, BrokerError("encode_failed", text))
            return 0
        self._sent += 1
        self._in_flight[self._sent] = entry
        route = entry.route
        route.unconfirmed += 1
        method = route.frame if route.channel == number else route.frame_for(number)
        start = _HEADER(2, number, header, _BASIC, length)
        if 0 < length <= self._longest:
            parts += (method, start, properties, _HEADER_AND_BODY(_END, 3, number, length), body, _END)
        else:
            parts += (method, start, properties, _END)
            for at in range(0, length, self._longest):
                piece = body[at : at + self._longest]
                parts += (_FRAME(3, number, len(piece)), piece, _END)
        return header + length

    def _returned(self, head: bytes, at: int, body: bytes) -> None:
        """Mark the oldest publish in flight that the return fits best."""
        best, most = None, 0
        route = _returned_from(head)
        for entry in self._in_flight.values():
            if not entry.returned and (likeness := _likeness(entry, route, head, at, body)) > most:
                best, most = entry, likeness
                if most == _SAME:
                    break
        if best is None:
            log.error("the broker returned a message to exchange '%s' that is not in flight", route[0])
        else:
            best.returned = True

    def _closed(self, closing: asyncio.Future[Any]) -> None:
        self.fail(None if closing.cancelled() else closing.exception())

    def fail(self, error: BaseException | None) -> None:
        """Tell all whose answer will never come; `error` closed the channel, None if the connection went."""
        self.open = False
        self._tap.leave(self._number, self)
        self._take_answers(_ALL)
        left, self._in_flight = self._in_flight, {}
        for entry in left.values():
            entry.route.unconfirmed -= 1
            self._resolve(entry, _why(entry, error))


def _refusal(entry: Entry) -> BrokerError:
    """Tell why the broker does not have a message that it has looked at."""
    if entry.returned:
        key = entry.message.routing_key if entry.message else ""
        return BrokerError("unroutable", f"{entry.what}: no queue takes routing key '{key}'")
    return BrokerError("nacked", f"{entry.what}: the broker refused the message, a queue may be full")


def _likeness(entry: Entry, route: tuple[str, str], head: bytes, at: int, body: bytes) -> int:
    """Tell how much of a message a return repeats; a broker may be set to add headers on the way in."""
    message = entry.message
    if message is None or (message.exchange, message.routing_key) != route:
        return 0
    same_body = message.body == body
    if same_body and head[at - 2 : -1] == entry.properties:
        return _SAME
    sent, back = decode.properties(entry.properties, 2), decode.properties(head, at)
    return (
        1
        + 8 * same_body
        + 4 * (sent.message_id == back.message_id)
        + 2 * (replace(sent, headers={}) == replace(back, headers={}))
        + (sent.headers == back.headers)
    )


def _returned_from(head: bytes) -> tuple[str, str]:
    """Read exchange and routing key of a return, behind its code (2 bytes) and text."""
    _, at = decode.short_text(head, _RETURN_TEXT_AT)
    exchange, at = decode.short_text(head, at)
    return exchange, decode.short_text(head, at)[0]


def _why(entry: Entry, error: BaseException | None) -> BrokerError:
    """Tell a refusal of this exchange from one of another, or a loss, that closed the channel for all."""
    if not isinstance(error, Exception):
        return BrokerError("connection", f"{entry.what}: the connection was lost")
    refusal = broker_error(entry.what, error)
    named = f"exchange '{entry.route.exchange}'" in str(refusal).partition(": ")[2]
    if refusal.reason in ("queue_not_found", "access_refused") and not named:
        text = f"{entry.what}: the broker closed the channel over another message"
        return BrokerError("connection", text)
    return refusal
