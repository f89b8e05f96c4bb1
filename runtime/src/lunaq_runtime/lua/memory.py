"""Keeps lupa from running out of Lua memory in Python's hands; used by `state`, `callbacks`, `invocation`.

Inside running Lua code an allocation beyond the limit is an ordinary Lua error. While Python hands a value
over it is not: outside a protected call Lua aborts the process, and inside a callback it jumps over
lupa's frames and leaves the GIL locked for ever (both measured with lupa 2.8). So whoever is about to hand
something over asks here for room first.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from lunaq_runtime.lua.errors import HandlerError

if TYPE_CHECKING:
    from collections.abc import Callable

MARGIN = 4 * 1024
"""Bytes that handing over a small value or an exception may need."""

RESERVE = 256 * 1024
"""Bytes by which a state may exceed its limit, in steps of what is handed over; then nothing is any more."""


ERROR_WEIGHT = 2 * 1024
"""Bytes that an error object is taken to use in Python, besides its texts."""


class Burden:
    """What a Python object that Lua holds takes from a state's limit, for as long as the object lives."""

    def __init__(self, guard: MemoryGuard, size: int) -> None:
        self._guard = weakref.ref(guard)
        self._size = size
        guard.lower(size)

    def __del__(self) -> None:
        if guard := self._guard():
            guard.lower(-self._size)


class MemoryGuard:
    """The memory limit of one Lua state; there is none until `limit_to`. `seen` are the bytes last in use."""

    __slots__ = (
        "__weakref__",
        "_collect",
        "_current",
        "_limit",
        "_plenty",
        "_set",
        "_used",
        "seen",
    )

    def __init__(self, runtime: Any) -> None:
        self._used = runtime.get_memory_used
        self._set = runtime.set_max_memory
        self._limit = 0
        self._current = 0
        self._plenty = 0  # what may be in use, with what is handed over, without a limit to be set
        self.seen = 0
        self._collect: Callable[[], Any] | None = None

    def collect_with(self, collect: Callable[[], Any]) -> None:
        """Take a function that collects Lua's garbage at once."""
        self._collect = collect

    def lower(self, size: int) -> None:
        """Take `size` bytes from the limit for what Python keeps on behalf of Lua; it holds from `fit` on."""
        if self._limit:
            self._limit -= size
            self._reckon()

    def burden(self, value: Any) -> None:
        """Count a HandlerError, or those of a tuple, that Lua is about to hold."""
        if isinstance(value, HandlerError):
            if value.burden is None:
                value.burden = Burden(self, ERROR_WEIGHT + value.size)
        elif value.__class__ is tuple:
            for part in value:
                if isinstance(part, HandlerError):
                    self.burden(part)

    def limit_to(self, limit: int) -> None:
        """Allow `limit` bytes beyond what is in use now."""
        self._limit = self._used(total=True) + limit
        self._apply(self._limit)

    def fit(self, need: int = 0) -> bool:
        """Make room for handing over `need` bytes and a margin; False where the limit forbids it."""
        self.seen = used = self._used(total=True)
        if used + need <= self._plenty:
            return True
        if self._limit and used + need > self._limit + RESERVE:
            # Some of it may be garbage that Lua has had no reason to collect yet.
            if self._collect is not None:
                self._apply(0)
                self._collect()
                used = self._used(total=True)
            if used + need > self._limit + RESERVE:
                return False
        self._apply(max(self._limit, used + need + MARGIN) if self._limit else 0)
        return True

    def lift(self) -> None:
        """Suspend the limit while a table of unknown size is built; `fit` brings it back."""
        self._apply(0)

    def beside(self, make: Callable[[], Any]) -> Any:
        """Make something of the sandbox's own, which the limit does not count."""
        before = self._used(total=True)
        self.lift()
        try:
            return make()
        finally:
            if self._limit:
                self._limit += max(self._used(total=True) - before, 0)
                self._reckon()
            self.fit()

    def _apply(self, limit: int) -> None:
        if limit != self._current:
            self._current = limit
            self._set(limit, total=True)
        self._reckon()

    def _reckon(self) -> None:
        self._plenty = self._limit - MARGIN if self._current == self._limit else 0


def size_of(value: Any) -> int:
    """Tell how many bytes handing over `value` needs beyond the margin; tables are counted already."""
    if value.__class__ is bytes:
        return len(value)
    if value.__class__ is tuple:
        return sum([size_of(part) for part in value if part.__class__ in (bytes, tuple)])
    return 0
