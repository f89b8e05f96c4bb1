"""Threads in which Lua runs, so that a handler that never ends holds up neither sockets nor other handlers.

One thread serves all slots; calls and results cross over in batches. Whatever waits longer than `patience`
behind a call that does not come back gets a thread of its own, and the late one retires. As a slot has one
call at a time, there are never more threads than slots.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 0.05
"""Seconds a call may wait behind others before another thread takes over."""

_Result = TypeVar("_Result")
_Job = tuple["asyncio.Future[Any]", "Callable[[], Any]"]


class Stepper:
    """Runs calls in threads for one event loop; made and closed on that loop."""

    def __init__(self, *, patience: float = PATIENCE) -> None:
        self._loop = asyncio.get_running_loop()
        self._patience = patience
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._done: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._collecting = False
        self._lock = threading.Lock()
        self._threads = 0
        self._submitted = 0
        self._taken = 0
        self._returned = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def threads(self) -> int:
        """Count the threads alive."""
        return self._threads

    def call(self, function: Callable[[], _Result]) -> asyncio.Future[_Result]:
        """Run `function` in a thread; the future has its result or what it raised."""
        future: asyncio.Future[_Result] = self._loop.create_future()
        self._submitted += 1
        self._jobs.put((future, function))
        if self._threads == 0:
            self._start_thread()
        if self._timer is None:
            self._timer = self._loop.call_later(self._patience, self._supervise, self._submitted)
        return future

    def close(self) -> None:
        """Let idle threads end; one that is stuck in a call is left behind, and holds nobody up."""
        self._closed = True
        if self._timer:
            self._timer.cancel()
            self._timer = None
        for _ in range(self._threads):
            self._jobs.put(None)

    def _start_thread(self) -> None:
        with self._lock:
            self._threads += 1
        threading.Thread(target=self._serve, name="lunaq-lua", daemon=True).start()

    def _supervise(self, submitted: int) -> None:
        """Add a thread if what was submitted before the last look has not been taken up yet."""
        self._timer = None
        if self._closed:
            return
        if self._taken < submitted:
            self._start_thread()
        if self._returned < self._submitted:
            self._timer = self._loop.call_later(self._patience, self._supervise, self._submitted)

    def _serve(self) -> None:
        while job := self._jobs.get():
            with self._lock:
                self._taken += 1
            started = time.monotonic()
            future, function = job
            try:
                self._hand_back(future, function(), None)
            except BaseException as error:  # noqa: BLE001 - it is raised again where the call was made
                self._hand_back(future, None, error)
            del job, future, function
            if time.monotonic() - started > self._patience and self._retire():
                return
        with self._lock:
            self._threads -= 1

    def _retire(self) -> bool:
        with self._lock:
            if self._threads == 1:
                return False
            self._threads -= 1
            return True

    def _hand_back(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self._done.append((future, result, error))
        if not self._collecting:
            self._collecting = True
            try:
                self._loop.call_soon_threadsafe(self._collect)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more

    def _collect(self) -> None:
        # Cleared first: what a thread appends from here on is either seen below or schedules another turn.
        self._collecting = False
        while self._done:
            future, result, error = self._done.popleft()
            self._returned += 1
            if future.cancelled():
                continue
            if error is None:
                future.set_result(result)
            elif isinstance(error, StopIteration):
                future.set_exception(RuntimeError("StopIteration out of a call"))
            else:
                future.set_exception(error)
