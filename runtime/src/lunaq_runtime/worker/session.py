"""One subscription's life: what it delivers is sorted here, and it ends for one of three reasons.

The worker opens a session, waits for its end, and winds it down. A new one follows unless the worker drains.
"""

from __future__ import annotations

import asyncio
from collections import deque
from enum import IntEnum
from typing import TYPE_CHECKING

from lunaq_runtime.retry import HandedBack, Republish, Start, decide, suspect, triage

if TYPE_CHECKING:
    from collections.abc import Callable

    from lunaq_runtime.entries.model import Queue
    from lunaq_runtime.message import Delivery
    from lunaq_runtime.settle import Settler


class End(IntEnum):
    """Why a session ends; a higher one overrules a lower one."""

    NONE = 0
    SUSPECT = 1
    WITHDRAWN = 2
    DRAIN = 3


class Session:
    """Sorts deliveries into those that run, those handed back, and the one that must run alone.

    What may run waits in `unstarted`, from which Lua threads take; `ready` is called when there is some.
    What ran and succeeded they put into `succeeded`. `clock` tells Unix seconds.
    """

    def __init__(
        self,
        queue: Queue,
        settler: Settler,
        ready: Callable[[], None],
        clock: Callable[[], float],
        *,
        no_ack: bool = False,
    ) -> None:
        self._queue = queue
        self._ready = ready
        self._clock = clock
        self._no_ack = no_ack
        self._changed = asyncio.Event()
        self._withdrawn = False
        self.settler = settler
        self.end = End.NONE
        self.suspect: Delivery | None = None
        self.unstarted: deque[Delivery] = deque()
        self.succeeded: deque[Delivery] = deque()

    @property
    def returning(self) -> bool:
        """Whether what has not started is handed back; with `no_ack`, the broker has let go of it."""
        return self._withdrawn or (self.end >= End.WITHDRAWN and not self._no_ack)

    def finish(self, end: End) -> None:
        """Ask for the session's end; where what has not started is not to run, it is handed back now."""
        self._withdrawn = self._withdrawn or end is End.WITHDRAWN
        if end > self.end:
            self.end = end
            self._changed.set()
        if self.returning:
            self.hand_back_unstarted()

    async def ended(self, above: End = End.NONE) -> End:
        """Wait for an end that overrules `above`."""
        while self.end <= above:
            self._changed.clear()
            await self._changed.wait()
        return self.end

    def deliver(self, deliveries: list[Delivery]) -> None:
        """Take what has arrived; called by the broker."""
        self.settler.hold(deliveries)
        if self.returning:
            for delivery in deliveries:
                self.hand_back(delivery)
            return
        if not self._no_ack:
            deliveries = [delivery for delivery in deliveries if delivery.bare or self._may_run(delivery)]
        self.unstarted.extend(deliveries)
        self._ready()

    def hand_back(self, delivery: Delivery) -> None:
        """Return a delivery that no run has finished, without counting an attempt."""
        self.settler.submit(delivery, decide(delivery, HandedBack(), self._queue, self._clock()))

    def hand_back_unstarted(self) -> None:
        """Return all that waits; a thread may have just taken one, which then has started."""
        if self.suspect:
            self.hand_back(self.suspect)
            self.suspect = None
        unstarted = self.unstarted
        while unstarted:
            try:
                delivery = unstarted.popleft()
            except IndexError:
                break
            self.hand_back(delivery)

    def run_suspect(self) -> Delivery | None:
        """Let the delivery that has been waiting to run alone run now; None if there is none."""
        waiting, self.suspect = self.suspect, None
        if waiting:
            self.unstarted.append(waiting)
            self._ready()
        return waiting

    def _may_run(self, delivery: Delivery) -> bool:
        """Tell whether a delivery may run beside others; what becomes of another is decided here."""
        match triage(delivery, self._queue, self._clock()):
            case Republish() as plan:
                self.settler.submit(delivery, plan)
            case Start.SHARED:
                return True
            case Start.ALONE if self.suspect is None:
                self.suspect = delivery
                self.finish(End.SUSPECT)
            case Start.ALONE:
                self.settler.submit(delivery, suspect(delivery, self._queue))
        return False
