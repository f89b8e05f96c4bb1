"""The keyed work queue between what happened and what is done about it; fed by `watch`, run by `main`.

As in Go controllers: a key waits at most once, never runs twice at the same time, comes again after a
failure with growing pauses, and may ask to be looked at again later.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

K = TypeVar("K", bound="Hashable")

log = logging.getLogger(__name__)


class Retry(Exception):  # noqa: N818 - asks for something, like StopIteration
    """A failure whose cause is known: told in one line, without a traceback, and tried again by backoff."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses after failures, in seconds: `base` doubled per failure up to `cap`, up to half of it left to
    chance.
    """

    base: float = 0.2
    cap: float = 60.0

    def delay(self, failures: int, jitter: float) -> float:
        """Return the pause after so many failures in a row; `jitter` is a random number in [0, 1)."""
        full = min(self.cap, self.base * 2.0 ** min(failures - 1, 30))
        return full * (0.5 + 0.5 * jitter)


class WorkQueue(Generic[K]):
    """Runs `work(key)` for every key added, with `workers` at a time.

    `work` returns seconds after which it wants the key again, or None. What it raises is logged and
    tried again by `backoff`.
    """

    def __init__(
        self,
        work: Callable[[K], Awaitable[float | None]],
        *,
        workers: int = 8,
        backoff: Backoff | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._work = work
        self._workers = workers
        self._backoff = backoff or Backoff()
        self._jitter = jitter
        self._ready: deque[K] = deque()
        self._waiting: set[K] = set()
        self._running: set[K] = set()
        self._again: set[K] = set()
        self._failures: dict[K, int] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._wake = asyncio.Event()
        self.done = 0
        """How many runs of `work` ended, well or not."""

    def __len__(self) -> int:
        """Count the keys that wait or run."""
        return len(self._waiting) + len(self._running)

    def add(self, key: K, *, urgent: bool = False) -> None:
        """Have `key` looked at soon, before all others if urgent; nothing happens if it waits already."""
        if key in self._running:
            self._again.add(key)
        elif key not in self._waiting:
            self._cancel_timer(key)
            self._waiting.add(key)
            if urgent:
                self._ready.appendleft(key)
            else:
                self._ready.append(key)
            self._wake.set()

    def add_after(self, key: K, seconds: float) -> None:
        """Have `key` looked at after a while, unless it is looked at before; replaces an earlier wish."""
        self._cancel_timer(key)
        loop = asyncio.get_running_loop()
        self._timers[key] = loop.call_later(seconds, self._due, key)

    def forget(self, key: K) -> None:
        """Drop failures and timers of a key whose object is gone."""
        self._failures.pop(key, None)
        self._cancel_timer(key)

    async def run(self) -> None:
        """Work until cancelled; what runs at that moment is cancelled too, and timers are dropped."""
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self._workers):
                    group.create_task(self._worker(), name=f"worker-{number}")
        finally:
            for key in list(self._timers):
                self._cancel_timer(key)

    async def _worker(self) -> None:
        while True:
            while not self._ready:
                self._wake.clear()
                await self._wake.wait()
            key = self._ready.popleft()
            self._waiting.discard(key)
            self._running.add(key)
            try:
                await self._run_one(key)
            finally:
                self.done += 1
                self._running.discard(key)
                if key in self._again:
                    self._again.discard(key)
                    self.add(key)

    async def _run_one(self, key: K) -> None:
        try:
            again = await self._work(key)
        except Exception as error:  # the one place where a reconcile's failure ends
            failures = self._failures.get(key, 0) + 1
            self._failures[key] = failures
            delay = self._backoff.delay(failures, self._jitter())
            text = "Reconcile of %s failed (%d in a row), again in %.1f s: %s"
            unknown = None if isinstance(error, Retry) else error
            log.warning(text, key, failures, delay, error, exc_info=unknown)
            self.add_after(key, delay)
        else:
            self._failures.pop(key, None)
            if again is not None:
                self.add_after(key, again)

    def _due(self, key: K) -> None:
        self._timers.pop(key, None)
        self.add(key)

    def _cancel_timer(self, key: K) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
