"""Carries out the requests that several coroutines of one handler wait for at the same time.

`desk` calls `gather` for each `Wait`. Between two of them the requests go on; they end with the invocation.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lunaq_runtime.lua.requests import Outstanding, Single, Wait

    Execute = Callable[[Single], Awaitable[tuple[Any, ...]]]


async def gather(wait: Wait, execute: Execute) -> tuple[Any, ...]:
    """Begin what is new and return what is done, as `Wait` says; raises what `execute` raises."""
    outstanding = wait.outstanding
    if outstanding.carrier is None:
        outstanding.carrier = _Carrier(execute)
        outstanding.close = outstanding.carrier.close
    carrier: _Carrier = outstanding.carrier
    carrier.take(outstanding)
    return await carrier.wait(wait.seconds)


class _Carrier:
    def __init__(self, execute: Execute) -> None:
        self._execute = execute
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[int, asyncio.Future[tuple[Any, ...]]] = {}
        self._done: deque[tuple[int, asyncio.Future[tuple[Any, ...]]]] = deque()
        self._some_done = asyncio.Event()

    def take(self, outstanding: Outstanding) -> None:
        for tag, request in outstanding.new.items():
            self._tasks[tag] = task = asyncio.ensure_future(self._execute(request))
            task.add_done_callback(partial(self._finished, tag))
        outstanding.new.clear()
        for tag in outstanding.dropped:
            if dropped := self._tasks.pop(tag, None):
                dropped.cancel()
        outstanding.dropped.clear()

    async def wait(self, seconds: float | None) -> tuple[Any, ...]:
        if not self._done and seconds != 0:
            try:
                async with asyncio.timeout(seconds):
                    await self._some_done.wait()
            except TimeoutError:
                pass
        elif not self._done:
            await asyncio.sleep(0)
        done = list(self._done)
        self._done.clear()
        self._some_done.clear()
        try:
            return tuple((tag, task.result()) for tag, task in done)
        except BaseException:
            self._cancel()
            raise

    def close(self) -> None:
        """End what goes on; from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._cancel)
        except RuntimeError:
            return  # the loop is closed, and with it everything has ended

    def _cancel(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

    def _finished(self, tag: int, task: asyncio.Future[tuple[Any, ...]]) -> None:
        if self._tasks.pop(tag, None) is not None:
            self._done.append((tag, task))
            self._some_done.set()
        elif not task.cancelled():
            task.exception()  # nobody waits for it; looked at, it is not reported as lost
