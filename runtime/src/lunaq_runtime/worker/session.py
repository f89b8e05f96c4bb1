"""One subscription's life: what it delivers is sorted here, and it ends for one of three reasons.

The worker opens a session, waits for its end, and winds it down. A new one follows unless the worker drains.
"""

from __future__ import annotations

import asyncio
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

    `run` is given what may run now; `clock` tells Unix seconds.
    """

    def __init__(
        self,
        queue: Queue,
        settler: Settler,
        run: Callable[[Session, Delivery], None],
        clock: Callable[[], float],
        *,
        no_ack: bool = False,
    ) -> None:
        self._queue = queue
        self._run = run
        self._clock = clock
        self._no_ack = no_ack
        self._changed = asyncio.Event()
        self.settler = settler
        self.end = End.NONE
        self.suspect: Delivery | None = None

    @property
    def returning(self) -> bool:
        """Whether what has not started is handed back."""
        return self.end >= End.WITHDRAWN and not self._no_ack

    def finish(self, end: End) -> None:
        """Ask for the session's end."""
        if end > self.end:
            self.end = end
            self._changed.set()

    async def ended(self, above: End = End.NONE) -> End:
        """Wait for an end that overrules `above`."""
        while self.end <= above:
            self._changed.clear()
            await self._changed.wait()
        return self.end

    def deliver(self, deliveries: list[Delivery]) -> None:
        """Take what has arrived; called by the broker."""
        self.settler.hold(deliveries)
        for delivery in deliveries:
            if self.returning:
                self.hand_back(delivery)
            elif self._no_ack:
                self._run(self, delivery)
            else:
                self._sort(delivery)

    def hand_back(self, delivery: Delivery) -> None:
        """Return a delivery that no run has finished, without counting an attempt."""
        self.settler.submit(delivery, decide(delivery, HandedBack(), self._queue, self._clock()))

    def _sort(self, delivery: Delivery) -> None:
        match triage(delivery, self._queue, self._clock()):
            case Republish() as plan:
                self.settler.submit(delivery, plan)
            case Start.SHARED:
                self._run(self, delivery)
            case Start.ALONE if self.suspect is None:
                self.suspect = delivery
                self.finish(End.SUSPECT)
            case Start.ALONE:
                self.settler.submit(delivery, suspect(delivery, self._queue))

    def take_suspect(self) -> Delivery | None:
        """Hand over the delivery that has been waiting to run alone."""
        waiting, self.suspect = self.suspect, None
        return waiting
