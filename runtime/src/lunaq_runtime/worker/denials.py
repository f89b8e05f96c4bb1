"""What a policy refused one consumer: counted by action and queue, and told in the log, not each time.

Called by `host` from Lua threads, read by `metrics`. Both bounds are there because handlers choose the
names: whatever they ask for, there are few counters and few lines in the log.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MOST = 20
"""How many (action, queue) are told apart; what comes later is counted as `OTHERS`."""

OTHERS = "others"
LONGEST = 127
"""Of a queue's name, in characters: that of a queue ID."""

PAUSE = 60.0
"""Seconds between two lines in the log about the same refusal."""


class Denials:
    """Counts of one consumer; `clock` is monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], int] = {}
        self._told: dict[tuple[str, str], tuple[float, int]] = {}

    def counts(self) -> dict[tuple[str, str], int]:
        """Return how often each (action, queue) was refused."""
        with self._lock:
            return dict(self._counts)

    def add(self, action: str, resource: str) -> int:
        """Count one refusal; return how many of it are to be told in the log now, mostly none."""
        with self._lock:
            key = (action, resource[:LONGEST])
            if key not in self._counts and len(self._counts) >= MOST:
                key = (action, OTHERS)
            count = self._counts[key] = self._counts.get(key, 0) + 1
            at, told = self._told.get(key, (-PAUSE, 0))
            now = self._clock()
            if now - at < PAUSE:
                return 0
            self._told[key] = (now, count)
            return count - told
