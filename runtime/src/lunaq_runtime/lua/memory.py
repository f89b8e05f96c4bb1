"""Keeps lupa from running out of Lua memory in Python's hands; used by `state`, `callbacks`, `invocation`.

Inside running Lua code an allocation beyond the limit is an ordinary Lua error. While Python hands a value
over it is not: outside a protected call Lua aborts the process, and inside a callback it jumps over
lupa's frames and leaves the GIL locked for ever (both measured with lupa 2.8). So whoever is about to hand
something over asks here for room first.
"""

from __future__ import annotations

from typing import Any

MARGIN = 4 * 1024
"""Bytes that handing over a small value or an exception may need."""

RESERVE = 256 * 1024
"""Bytes by which a state may exceed its limit, in steps of what is handed over; then nothing is any more."""


class MemoryGuard:
    """The memory limit of one Lua state; there is none until `limit_to`."""

    def __init__(self, runtime: Any) -> None:
        self._used = runtime.get_memory_used
        self._set = runtime.set_max_memory
        self._limit = 0
        self._current = 0

    def limit_to(self, limit: int) -> None:
        """Allow `limit` bytes beyond what is in use now."""
        self._limit = self._used(total=True) + limit
        self._apply(self._limit)

    def fit(self, need: int = 0) -> bool:
        """Make room for handing over `need` bytes and a margin; False where the limit forbids it."""
        used = self._used(total=True)
        if self._limit and used + need > self._limit + RESERVE:
            return False
        self._apply(max(self._limit, used + need + MARGIN) if self._limit else 0)
        return True

    def lift(self) -> None:
        """Suspend the limit while a table of unknown size is built; `fit` brings it back."""
        self._apply(0)

    def _apply(self, limit: int) -> None:
        if limit != self._current:
            self._current = limit
            self._set(limit, total=True)


def size_of(value: Any) -> int:
    """Tell how many bytes handing over `value` needs beyond the margin; tables are counted already."""
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, tuple):
        return sum(size_of(part) for part in value)
    return 0
