"""Messages on their way, and the routes they take: an exchange and a routing key. `publishing` keeps them.

A broker confirms persistent messages in bursts, once their queue has nothing else to do. Where all that a
consumer may have is published and waits for that, the broker has nothing to deliver, and we have nothing to
handle: each waits for the other. So only half of it may be unconfirmed, and the rest is held here, ready to
be sent. It is counted for each route, so that a queue which confirms nothing holds up no other.
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import TYPE_CHECKING

from lunaq_runtime.brokers.wire import short_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lunaq_runtime.brokers.base import BrokerError
    from lunaq_runtime.message import Outgoing

LEAST_UNCONFIRMED = 250
"""Publishes of a route that may always wait for their confirms: a broker that needs 10 ms for one is not
slowed down, for it still confirms 25,000 a second."""

MOST_UNCONFIRMED = 1000
"""Those that may do so at most, however many deliveries a consumer may have. With half of a prefetch of 1000,
a relay is a twentieth to a tenth faster than without a limit (docs/proofs.md)."""

MOST_KEPT = 1024
"""Routes that are remembered at most."""

_PUBLISH = b"\x00\x3c\x00\x28\x00\x00"  # class 60, method 40, a reserved number
_MANDATORY = b"\x01"
_END = b"\xce"
_FRAME = Struct(">BHI").pack


def most_unconfirmed(prefetch: int) -> int:
    """Tell how many publishes of a route may be unconfirmed where a consumer has so many deliveries."""
    return min(max(prefetch // 2, LEAST_UNCONFIRMED), MOST_UNCONFIRMED)


class Route:
    """An exchange and a routing key, encoded once; BrokerError `encode_failed` where one is too long.

    Attributes:
        unconfirmed: publishes that were sent and not answered yet.
        held: those that wait until fewer are unconfirmed, in their order.
    """

    __slots__ = ("_payload", "channel", "exchange", "frame", "held", "unconfirmed")

    def __init__(self, exchange: str, routing_key: str) -> None:
        self.exchange = exchange
        names = short_text("the exchange", exchange) + short_text("the routing key", routing_key)
        self._payload = _PUBLISH + names + _MANDATORY
        self.channel = -1
        self.frame = b""
        self.unconfirmed = 0
        self.held: deque[Entry] = deque()

    def frame_for(self, channel: int) -> bytes:
        """Give the whole method frame; it stays in `frame` as long as `channel` is the same."""
        if channel != self.channel:
            self.channel = channel
            self.frame = _FRAME(1, channel, len(self._payload)) + self._payload + _END
        return self.frame


class Entry:
    """A message on its way: `properties` are its encoded ones, `deadline` is in loop time.

    `done` is called once, and is None from then on; a message that was sent keeps its place until the broker
    has answered, even if nobody waits for that any more.
    """

    __slots__ = ("deadline", "done", "message", "properties", "returned", "route")

    def __init__(
        self,
        message: Outgoing,
        route: Route,
        properties: bytes,
        done: Callable[[BrokerError | None], None],
        deadline: float,
    ) -> None:
        self.message: Outgoing | None = message
        self.route = route
        self.properties = properties
        self.done: Callable[[BrokerError | None], None] | None = done
        self.deadline = deadline
        self.returned = False

    @property
    def what(self) -> str:
        """Say what failed, for an error's text."""
        return f"cannot publish to exchange '{self.route.exchange}'"


class Routes:
    """The routes of one publisher, and what is held on them."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], Route] = {}
        self._holding: set[Route] = set()

    def find(self, exchange: str, routing_key: str) -> Route:
        """Give the route, made on its first use; BrokerError as `Route` says."""
        route = self._kept.get((exchange, routing_key))
        if route is None:
            route = Route(exchange, routing_key)
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            self._kept[exchange, routing_key] = route
        return route

    def hold(self, entry: Entry) -> None:
        """Keep a message until `next_held` gives it."""
        entry.route.held.append(entry)
        self._holding.add(entry.route)

    def next_held(self, route: Route) -> Entry:
        """Take the first message that is held on a route."""
        entry = route.held.popleft()
        if not route.held:
            self._holding.discard(route)
        return entry

    def held(self) -> Iterator[Entry]:
        """Go through all that is held."""
        for route in self._holding:
            yield from route.held

    def forget_done(self) -> None:
        """Drop what is held and nobody waits for any more."""
        for route in list(self._holding):
            route.held = deque(entry for entry in route.held if entry.done is not None)
            if not route.held:
                self._holding.discard(route)
