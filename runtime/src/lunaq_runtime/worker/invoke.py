"""Drives one invocation: Lua runs in a thread until it asks for something, which is done on the loop.

`worker` makes an `InvocationRun` per delivery. The handler's time keeps running while a request is being
carried out, and both that and a shutdown end it wherever it is.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from lunaq_runtime.lua.errors import HandlerError
from lunaq_runtime.lua.invocation import timeout_error
from lunaq_runtime.lua.requests import Finished

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lunaq_runtime.lua.requests import Request
    from lunaq_runtime.worker.stepper import Stepper


class Invocation(Protocol):
    """What the driver needs of `lua.state.Invocation`."""

    @property
    def remaining(self) -> float:
        """Seconds left."""

    def step(self, reply: tuple[Any, ...] = ()) -> Request | Finished:
        """Run Lua until it asks for something or is over."""

    def interrupt(self, error: HandlerError) -> None:
        """End the running step soon, from another thread."""

    def abort(self, error: HandlerError) -> Finished:
        """End the invocation between steps."""


class InvocationRun:
    """One invocation from its start to its end.

    `start` begins it, in a thread; `execute` carries out one request and returns its reply. `timeout` is
    the handler's, in seconds.
    """

    def __init__(
        self,
        stepper: Stepper,
        start: Callable[[], Invocation],
        execute: Callable[[Request], Awaitable[tuple[Any, ...]]],
        timeout: float,
    ) -> None:
        self._stepper = stepper
        self._start = start
        self._execute = execute
        self._loop = asyncio.get_running_loop()
        self._invocation: Invocation | None = None
        self._waiting: asyncio.Future[tuple[Any, ...]] | None = None
        self._timeout = timeout
        self.started = self._loop.time()
        self.interruption: HandlerError | None = None

    async def finish(self) -> Finished:
        """Run to the end; raises only what starting the invocation raised."""
        outcome = await self._stepper.call(self._first_step)
        while not isinstance(outcome, Finished):
            invocation = self._invocation
            if invocation is None:  # pragma: no cover - the first step has set it
                raise RuntimeError("an invocation asked for something before it began")
            reply = await self._reply(outcome, invocation)
            if isinstance(reply, HandlerError):
                outcome = await self._stepper.call(partial(invocation.abort, reply))
            else:
                outcome = await self._stepper.call(partial(invocation.step, reply))
        return outcome

    def interrupt(self, error: HandlerError) -> None:
        """End it as soon as possible, wherever it is."""
        self.interruption = error
        if self._invocation:
            self._invocation.interrupt(error)
        if self._waiting:
            self._waiting.cancel()

    def overdue(self, grace: float) -> bool:
        """Tell whether it should have ended more than `grace` seconds ago: no Lua hook can stop it."""
        return self._loop.time() > self.started + self._timeout + grace

    def _first_step(self) -> Request | Finished:
        self._invocation = invocation = self._start()
        if self.interruption:
            return invocation.abort(self.interruption)
        return invocation.step()

    async def _reply(self, request: Request, invocation: Invocation) -> tuple[Any, ...] | HandlerError:
        if self.interruption:
            return self.interruption
        self._waiting = waiting = asyncio.ensure_future(self._execute(request))
        try:
            await asyncio.wait({waiting}, timeout=max(invocation.remaining, 0.0))
        finally:
            self._waiting = None
            if not waiting.done():
                waiting.cancel()
        if self.interruption:
            return self.interruption
        if not waiting.done():
            return timeout_error(self._timeout)
        return waiting.result()
