"""One queue of the memory broker: order, priorities, expiry, limits, and who gets what is ready.

Only `memory.server` makes these. A queue decides; what leaves it as a dead letter goes to the server, which
knows the exchanges.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from copy import deepcopy
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from lunaq_runtime.message import Properties
    from lunaq_runtime.topology import QueueDecl


class Timer(Protocol):
    """What a clock's `call_later` returns."""

    def cancel(self) -> None:
        """Never call it."""


class Clock(Protocol):
    """Where a memory broker's time comes from, in seconds; an event loop is one."""

    def time(self) -> float:
        """Tell the time."""

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer:
        """Call back once, `delay` seconds from now."""


class Message:
    """A message in a queue or in a consumer's hands; `returns` counts how often it came back.

    `headers` are its own copy, never changed: several queues and deliveries may share it. Those of
    `properties` belong to the publisher.
    """

    __slots__ = (
        "body",
        "exchange",
        "expires_at",
        "headers",
        "position",
        "properties",
        "returns",
        "routing_key",
    )

    def __init__(
        self, body: bytes, properties: Properties, headers: dict[str, Any], exchange: str, routing_key: str
    ) -> None:
        self.body = body
        self.properties = properties
        self.headers = headers
        self.exchange = exchange
        self.routing_key = routing_key
        self.position = 0
        self.returns = 0
        self.expires_at: float | None = None

    def copy(self) -> Message:
        """Make another message of the same content, as each queue has its own."""
        return Message(self.body, self.properties, self.headers, self.exchange, self.routing_key)

    def own_properties(self, **headers: Any) -> Properties:
        """Copy the properties for somebody who may change their headers; `headers` are added."""
        copied = deepcopy(self.headers) if self.headers else {}
        return replace(self.properties, headers={**copied, **headers})


class Consumer(Protocol):
    """What a queue needs to know of a subscription."""

    def has_room(self) -> bool:
        """Whether it may hold one more unsettled message."""

    def take(self, message: Message) -> None:
        """Add the message to the batch of this turn."""

    def hand_over(self) -> None:
        """Deliver the batch of this turn."""

    def lost_queue(self) -> None:
        """Hear that the queue was deleted."""


class MemoryQueue:
    """A queue's messages and consumers.

    `dead_letter(queue, message, reason)` is told of every message that leaves other than by an ack.
    """

    def __init__(
        self, decl: QueueDecl, clock: Clock, dead_letter: Callable[[MemoryQueue, Message, str], None]
    ) -> None:
        self.decl = decl
        self.quorum = bool(decl.arguments.get("x-queue-type") == "quorum")
        """Whether returns are counted and dead letters may be at least once."""
        self.consumers: deque[Consumer] = deque()
        self.exclusive = False
        self.held = 0
        self.on_unused: Callable[[], None] = lambda: None
        self._clock = clock
        self._dead_letter = dead_letter
        self._ready: list[tuple[int, int, Message]] = []
        self._bytes = 0
        self._limited = self._argument("x-max-length", "x-max-length-bytes")
        self._ttl: int | None = self._argument("x-message-ttl")
        self._top = self._argument("x-max-priority")
        self._single = bool(self._argument("x-single-active-consumer"))
        self._expiring = 0
        self._positions = count()
        self._expiry: Timer | None = None
        self._unused: Timer | None = None
        self._pumping: asyncio.Handle | None = None
        self.watch_use()

    @property
    def depth(self) -> int:
        """Count what is ready."""
        return len(self._ready)

    def messages(self) -> list[Message]:
        """List what is ready, in the order of delivery."""
        return [entry[2] for entry in sorted(self._ready, key=lambda entry: entry[:2])]

    def offer(self, message: Message) -> bool:
        """Take a new message at the tail; false where the queue is full and rejects publishers."""
        if self._limited is not None and self._overflows(message):
            if self._argument("x-overflow") == "reject-publish":
                return False
            while self._ready and self._overflows(message):
                self._dead_letter(self, self._pop(), "maxlen")
        message.position = next(self._positions)
        ttl = self._ttl_ms(message)
        if ttl is not None:
            message.expires_at = self._clock.time() + ttl / 1000
        self._push(message)
        self.wake()
        return True

    def give_back(self, message: Message) -> None:
        """Put a delivered message back where it was; past the delivery limit it is a dead letter."""
        message.returns += 1
        limit = self._argument("x-delivery-limit")
        if self.quorum and limit is not None and message.returns > limit:
            self._dead_letter(self, message, "delivery_limit")
        else:
            self._push(message)
        self.wake()

    def attach(self, consumer: Consumer) -> None:
        """Add a consumer; it gets its share from the next turn of the loop on."""
        self.consumers.append(consumer)
        self.watch_use()
        self.wake()

    def detach(self, consumer: Consumer) -> None:
        """Remove a consumer; the last one of an auto-delete queue takes the queue with it."""
        if consumer not in self.consumers:
            return
        self.consumers.remove(consumer)
        if not self.consumers:
            self.exclusive = False
            if self.decl.auto_delete:
                self.on_unused()
                return
        self.watch_use()
        self.wake()

    def watch_use(self) -> None:
        """Restart the time after which an unused queue expires (`x-expires`)."""
        if self._unused:
            self._unused.cancel()
            self._unused = None
        expires = self._argument("x-expires")
        if expires is not None and not self.consumers:
            self._unused = self._clock.call_later(expires / 1000, self._expire_queue)

    def close(self) -> None:
        """Stop all timers and tell the consumers that the queue is gone."""
        for timer in (self._expiry, self._unused, self._pumping):
            if timer:
                timer.cancel()
        self._expiry = self._unused = self._pumping = None
        for consumer in list(self.consumers):
            consumer.lost_queue()
        self.consumers.clear()

    def wake(self) -> None:
        """Look at expiry and hand out what is ready, in the loop's next turn."""
        if self._pumping is None:
            self._pumping = asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = None
        self._expire()
        touched: dict[Consumer, None] = {}
        while self._ready and (consumer := self._next_consumer()):
            consumer.take(self._pop())
            touched[consumer] = None
            if self._expiring:
                self._expire()
        for consumer in touched:
            consumer.hand_over()

    def _next_consumer(self) -> Consumer | None:
        consumers = self.consumers
        if self._single or len(consumers) == 1:
            return consumers[0] if consumers and consumers[0].has_room() else None
        for _ in range(len(consumers)):
            consumer = consumers[0]
            consumers.rotate(-1)
            if consumer.has_room():
                return consumer
        return None

    def _expire(self) -> None:
        """Dead-letter what is due at the head, as RabbitMQ does: behind a later one a message waits."""
        if self._expiring:
            now = self._clock.time()
            while self._ready and self._due(now):
                self._dead_letter(self, self._pop(), "expired")
        if self._expiry:
            self._expiry.cancel()
            self._expiry = None
        if self._expiring and self._ready and (at := self._ready[0][2].expires_at) is not None:
            self._expiry = self._clock.call_later(max(at - now, 0), self._pump_now)

    def _due(self, now: float) -> bool:
        at = self._ready[0][2].expires_at
        return at is not None and at <= now

    def _pump_now(self) -> None:
        self._expiry = None
        self._pump()

    def _expire_queue(self) -> None:
        self._unused = None
        if not self.consumers:
            self.on_unused()

    def _push(self, message: Message) -> None:
        top = self._top
        priority = min(message.properties.priority or 0, top) if top is not None else 0
        heapq.heappush(self._ready, (-priority, message.position, message))
        self._bytes += len(message.body)
        if message.expires_at is not None:
            self._expiring += 1

    def _pop(self) -> Message:
        message = heapq.heappop(self._ready)[2]
        self._bytes -= len(message.body)
        if message.expires_at is not None:
            self._expiring -= 1
        return message

    def _overflows(self, message: Message) -> bool:
        length, size = self._argument("x-max-length"), self._argument("x-max-length-bytes")
        too_many = length is not None and len(self._ready) >= length
        return too_many or (size is not None and self._bytes + len(message.body) > size)

    def _ttl_ms(self, message: Message) -> int | None:
        own = message.properties.expiration
        if own is None:
            return self._ttl
        return int(own) if self._ttl is None else min(self._ttl, int(own))

    def _argument(self, *names: str) -> Any:
        """Tell the first of these arguments that the queue has."""
        return next((value for name in names if (value := self.decl.arguments.get(name)) is not None), None)
