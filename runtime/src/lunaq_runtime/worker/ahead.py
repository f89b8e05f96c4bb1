"""Handlers that run ahead of the confirm of their last publish (lua/prelude/ahead.lua).

Such a run is over in Lua while its delivery still waits for the confirm. It waits in no slot, so the state
goes on with the next delivery: one that stays in the processor's caches does the work of as many as there
are messages on their way, and no message is acked before what was published for it is confirmed.

The threads of `lane` ask here whether runs may go ahead, and leave what they published; `confirms` takes it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lunaq_runtime.lua.requests import Publish
    from lunaq_runtime.message import Delivery
    from lunaq_runtime.worker.session import Session

FIRST_WAITS = 64
"""Turns in which runs wait for confirms after one was void: the next may well be, and costs two runs."""

MOST_WAITS = 16 * 1024
"""The same, where runs are void again and again: each time twice as many, until a confirm comes."""


class Ahead:
    """One consumer's runs ahead.

    `published` is what threads have for the loop: session, delivery, when its run began, and the publish with
    what the run came to. `crowded` says that as much is on its way as may be.
    """

    def __init__(self) -> None:
        self.published: deque[tuple[Session, Delivery, float, Publish]] = deque()
        self.crowded = False
        self._waits = 0
        self._next_waits = FIRST_WAITS

    def may(self) -> bool:
        """Tell whether the runs of a turn that begins may go ahead."""
        if self._waits:
            self._waits -= 1
            return False
        return not self.crowded

    def was_void(self) -> None:
        """Have runs wait for a while."""
        self._waits = self._next_waits
        self._next_waits = min(2 * self._next_waits, MOST_WAITS)

    def was_confirmed(self) -> None:
        """Forget how often runs were void."""
        self._next_waits = FIRST_WAITS
