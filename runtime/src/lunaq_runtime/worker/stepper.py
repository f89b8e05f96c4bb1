"""Threads in which Lua runs, so that a handler that never ends holds up neither sockets nor other handlers.

One thread serves everybody; jobs are put in line, and a job that has more to do puts itself in line again. A
thread that does not come back from one step within `patience` is late: where something waits behind it,
another thread takes over, and the late one retires once it comes back. So there is never more than one
thread at work beside those that are stuck. One that has retired is kept, for a new thread has to be waited
for on the event loop.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 0.05
"""Seconds that one step may take while others wait, before another thread takes over."""

WAIT = 0.005
"""Seconds that the event loop waits for a round of short steps; sockets and probes wait as long."""

ALONE = 0.1
"""Seconds for which it waits for nobody after it has waited in vain: 5 % of its time at most."""

_Result = TypeVar("_Result")


class LuaThread:
    """What a thread says of itself; a job sets `since` anew at each of its steps.

    `since` is the start of the step it is in, on the monotonic clock, and 0 while it has none. Once it is
    `late`, it should return to the line at the next opportunity.
    """

    __slots__ = ("late", "since")

    def __init__(self) -> None:
        self.since = 0.0
        self.late = False


class Job(Protocol):
    """Something to do in a thread."""

    def serve(self, thread: LuaThread) -> None:
        """Do some of it, and come back; raises nothing."""


class Stepper:
    """Runs jobs in threads for one event loop; made and closed on that loop."""

    def __init__(self, *, patience: float = PATIENCE) -> None:
        self._loop = asyncio.get_running_loop()
        self._patience = patience
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._done: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._collecting = False
        self._lock = threading.Lock()
        self._threads: list[LuaThread] = []
        self._wanted: queue.SimpleQueue[LuaThread | None] = queue.SimpleQueue()  # wakes the retired one
        self._retired = 0
        self._timer: asyncio.TimerHandle | None = None
        self._alone_until = 0.0
        self._closed = False

    @property
    def threads(self) -> int:
        """Count the threads at work, or ready for it."""
        return len(self._threads)

    @property
    def waiting(self) -> bool:
        """Whether anything is in line."""
        return not self._jobs.empty()

    @property
    def patient(self) -> bool:
        """Whether the event loop should wait for what it puts in line: steps have been short lately."""
        return time.monotonic() >= self._alone_until

    def wait_for(self, ended: queue.SimpleQueue[None]) -> bool:
        """Hold the event loop until a job in line puts something there; False where it takes too long."""
        try:
            ended.get(timeout=WAIT)
        except queue.Empty:
            self._alone_until = time.monotonic() + ALONE
            return False
        return True

    def put(self, job: Job) -> None:
        """Put a job in line; called on the event loop."""
        if not self._threads:
            self._start_thread()
        if self._timer is None and not self._closed:
            self._timer = self._loop.call_later(self._patience, self._supervise)
        # Last, for whoever waits now lets go of the interpreter right when the thread wants it.
        self._jobs.put(job)

    def put_again(self, job: Job) -> None:
        """Put a job in line; called in a thread, by a job that is being served."""
        self._jobs.put(job)

    def call(self, function: Callable[[], _Result]) -> asyncio.Future[_Result]:
        """Run `function` in a thread; the future has its result or what it raised."""
        future: asyncio.Future[_Result] = self._loop.create_future()
        self.put(_Call(function, future, self._hand_back))
        return future

    def close(self) -> None:
        """Let idle threads end; one that is stuck in a step is left behind, and holds nobody up."""
        self._closed = True
        if self._timer:
            self._timer.cancel()
            self._timer = None
        for _ in self._threads:
            self._jobs.put(None)
        self._wanted.put(None)

    def _start_thread(self) -> None:
        thread = LuaThread()
        with self._lock:
            self._threads.append(thread)
            if self._retired:
                self._retired = 0
                self._wanted.put(thread)
                return
        threading.Thread(target=self._serve, args=(thread,), name="lunaq-lua", daemon=True).start()

    def _supervise(self) -> None:
        """Start a thread if something waits and all there are have been in one step for too long."""
        self._timer = None
        if self._closed:
            return
        too_long = time.monotonic() - self._patience
        with self._lock:
            for thread in self._threads:
                thread.late = thread.late or 0.0 < thread.since < too_long
            all_late = all(thread.late for thread in self._threads)
            busy = any(thread.since for thread in self._threads)
        if self.waiting and all_late:
            self._start_thread()
        if self.waiting or busy:
            self._timer = self._loop.call_later(self._patience, self._supervise)

    def _serve(self, thread: LuaThread | None) -> None:
        while thread:
            thread = self._wanted.get() if self._work(thread) else None

    def _work(self, thread: LuaThread) -> bool:
        """Do what is in line; true where the thread has retired and may be wanted again."""
        while job := self._jobs.get():
            thread.since = time.monotonic()
            job.serve(thread)
            del job
            thread.since = 0.0
            if thread.late and self._retire(thread):
                return self._stay()
        with self._lock:
            self._threads.remove(thread)
        return False

    def _retire(self, thread: LuaThread) -> bool:
        with self._lock:
            if all(other.late for other in self._threads):
                thread.late = False
                return False
            self._threads.remove(thread)
            return True

    def _stay(self) -> bool:
        """Be the one retired thread that is kept, unless there is one."""
        with self._lock:
            if self._retired or self._closed:
                return False
            self._retired = 1
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
            if future.cancelled():
                continue
            if error is None:
                future.set_result(result)
            elif isinstance(error, StopIteration):
                future.set_exception(RuntimeError("StopIteration out of a call"))
            else:
                future.set_exception(error)


class _Call:
    """A job that is one call."""

    def __init__(
        self,
        function: Callable[[], Any],
        future: asyncio.Future[Any],
        hand_back: Callable[[asyncio.Future[Any], Any, BaseException | None], None],
    ) -> None:
        self._function = function
        self._future = future
        self._hand_back = hand_back

    def serve(self, thread: LuaThread) -> None:
        del thread
        try:
            result = self._function()
        except BaseException as error:  # noqa: BLE001 - it is raised again where the call was made
            self._hand_back(self._future, None, error)
        else:
            self._hand_back(self._future, result, None)
