"""Several deliveries in one call of Lua: of a short handler, the calls cost more than what it does.

`lane` gathers a batch from what waits and runs it in a slot. Lua handles one delivery after the other,
until one does more than succeed: that one goes on by itself, the others wait again. While Lua is at it,
Python hears of a delivery only where something is done on its behalf, or where it takes long; then what has
succeeded is kept, and what has not started need not wait for it. So a batch delays nobody, and each of them
ends as it would alone.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from lunaq_runtime.codecs import CodecError
from lunaq_runtime.lua.requests import SUCCEEDED

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from lunaq_runtime.lua.requests import Finished, Request, Void
    from lunaq_runtime.message import Delivery
    from lunaq_runtime.worker.session import Session
    from lunaq_runtime.worker.slot import Slot

    Done = Callable[[Session, list[Delivery], float], None]
    """Takes what has succeeded, in so many seconds each."""
    PutBack = Callable[[Session, list[Delivery]], None]
    """Takes what is to wait again."""

MOST = 32
"""Deliveries of a batch."""

LONGEST = 0.001
"""Seconds that a batch should take at most; the next one is made larger or smaller accordingly."""

HEAVIEST = 32 * 1024
"""Bytes of all bodies of a batch: they are in Lua's memory at the same time."""


class Batch:
    """Deliveries of `session` for one call in `slot`.

    `deliveries` are those of which nobody in Python knows yet that they are over; the first one is, or was,
    in work. What has not started when it ends is put back.
    """

    def __init__(self, slot: Slot, session: Session, done: Done, put_back: PutBack) -> None:
        self.deliveries: list[Delivery] = []
        self._slot = slot
        self.session = session
        self._done = done
        self._put_back = put_back
        self._bodies: list[Any] = []
        self._size = 0
        self._since = 0.0
        self._place = 0  # of the one that Python last heard of
        self._passed = 0  # how many left the front of `deliveries`

    def gather(self, unstarted: deque[Delivery]) -> Delivery | None:
        """Take what can run in one call; returns the first one if that must be started by itself."""
        slot, bodies, deliveries = self._slot, self._bodies, self.deliveries
        decoders, pack = slot.decoders, slot.packer()
        take = unstarted.popleft
        for _ in range(slot.most):
            try:
                delivery = take()
            except IndexError:
                break
            body = delivery.body
            size = self._size + len(body)
            if pack and size <= HEAVIEST:
                try:
                    value = decoders[delivery.content_type](body)
                except CodecError:
                    pass
                else:
                    if pack(value, bodies):
                        self._size = size
                        deliveries.append(delivery)
                        continue
                    slot.know(delivery, value)
            if not deliveries:
                return delivery
            # Its turn comes after those that are gathered, however far they get.
            self._put_back(self.session, [delivery])
            break
        return None

    def run(self, now: float) -> Request | Finished | Void:
        """Run it, until one does more than succeed; returns what that one came to.

        Left in `deliveries` is what that is the outcome of: the one, or all that succeeded and were
        not told of yet. NoRoomError says that nothing has started.
        """
        slot = self._slot
        self._since = now
        place, outcome = slot.run_batch(self, self._bodies, self._size, now)
        if place == 0:
            if outcome != self._passed + len(self.deliveries):
                # Rather all of them once more than one of them never.
                raise RuntimeError(f"{outcome} deliveries ran, of {self._passed} and {len(self.deliveries)}")
            return SUCCEEDED
        if place != self._place:
            self._turn_to(place, monotonic())
        self._end_here()
        return slot.carry_on(outcome)

    def turn(self, place: int) -> bool:
        """Hear which one is in work, in the middle of it; true where it is to be the last."""
        now = monotonic()
        if place != self._place:
            self._turn_to(place, now)
        if now - self._since < LONGEST or len(self.deliveries) == 1:
            return False
        self._end_here()
        return True

    def _end_here(self) -> None:
        """Let wait again what has not started."""
        waiting = self.deliveries[1:]
        if waiting:
            del self.deliveries[1:]
            self._put_back(self.session, waiting)

    def _turn_to(self, place: int, now: float) -> None:
        """Keep what came before; from now on Python, too, is at work on this one."""
        before = place - 1 - self._passed
        over = self.deliveries[:before]
        self._slot.turn_to(self.deliveries[before], now)
        del self.deliveries[:before]
        self._passed += before
        self._place = place
        if over:
            self._done(self.session, over, (now - self._since) / (place - 1))
