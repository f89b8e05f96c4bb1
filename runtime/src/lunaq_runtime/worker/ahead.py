"""What a lane keeps for handlers that run ahead of the confirms of their publishes (lua/prelude/ahead.lua).

Such a run is over in Lua while its delivery still waits for the confirm. It waits in another slot that is
free, and the state goes on with the next delivery; where no other is free, it waits in its own, which leaves
the state here for whichever is free next. So most handlers that publish run in one state, which stays in the
processor's caches, and no message is acked before what was published for it is confirmed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lunaq_runtime.lua.requests import Finished
    from lunaq_runtime.worker.slot import Slot, State

FIRST_WAITS = 64
"""Turns in which runs wait for confirms after one was void: the next may well be, and costs two runs."""

MOST_WAITS = 16 * 1024
"""The same, where runs are void again and again: each time twice as many, until a confirm comes."""


class Ahead:
    """States that are in no slot, and whether runs may go ahead; used by the lane's threads and its loop."""

    def __init__(self) -> None:
        self._spare: list[State] = []
        self._waits = 0
        self._next_waits = FIRST_WAITS

    @property
    def lua_memory(self) -> int:
        """Sum the bytes of the spare states."""
        return sum(state.memory.seen for state in list(self._spare))

    def prepare(self, slot: Slot) -> None:
        """Give a slot that is about to start a spare state, and tell it whether its runs may go ahead."""
        slot.prepare(self._spare, runs_ahead=not self._waits)
        if self._waits:
            self._waits -= 1

    def leave(self, slot: Slot, ended: Finished) -> None:
        """Take the state of a slot whose run is over in Lua, and came to this."""
        slot.leave_state(ended, self._spare)

    def was_void(self) -> None:
        """Have runs wait for a while."""
        self._waits = self._next_waits
        self._next_waits = min(2 * self._next_waits, MOST_WAITS)

    def was_confirmed(self) -> None:
        """Forget how often runs were void."""
        self._next_waits = FIRST_WAITS
