"""Runs handlers of several coroutines on a clock of their own: no worker, and nothing really waits.

A request takes as long as the test says, `Wait` gives what is done by then, and sleeping moves the clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lua_driver import IDENTITY, Clock, FakeHost

from lunaq_runtime.entries.model import Function, Handler
from lunaq_runtime.lua.requests import Finished, Publish, Sleep, Wait
from lunaq_runtime.lua.state import LuaState, MessageContext

if TYPE_CHECKING:
    from collections.abc import Callable

SECOND = 1_000_000_000
EPOCH = 1_700_000_000


class Stage:
    """One Lua state and what its handlers did: `events` are (seconds, text) of what they printed.

    `cost` tells how many seconds a request takes, `reply` what comes back.
    """

    def __init__(
        self,
        source: str,
        *,
        functions: dict[str, Function] | None = None,
        cost: Callable[[Any], float] = lambda _request: 1.0,
        reply: Callable[[Any], tuple[Any, ...]] = lambda _request: (True, None),
        **fields: Any,
    ) -> None:
        fields.setdefault("timeout", 1e9)
        self.clock = Clock()
        self.host = FakeHost()
        self.state = LuaState(
            Handler("app.lua", source, functions=functions or {}, **fields),
            self.host,
            identity=IDENTITY,
            monotonic=self.clock,
            wall_clock=lambda: int((EPOCH + self.clock.now) * SECOND),
        )
        self._cost = cost
        self._reply = reply
        self.requests: list[Any] = []
        self.dropped: list[int] = []

    @property
    def printed(self) -> list[str]:
        return self.host.printed()

    def run(self, body: Any = None, *, limit: int = 10_000) -> Finished:
        """Run one message to its end; `limit` is how often the handler may ask for something."""
        invocation = self.state.start(MessageContext("id-1"), body)
        underway: dict[int, tuple[float, Any]] = {}
        outcome = invocation.step()
        for _ in range(limit):
            if isinstance(outcome, Finished):
                return outcome
            self.requests.append(outcome)
            reply: tuple[Any, ...]
            match outcome:
                case Sleep(seconds=seconds):
                    self.clock.now += seconds
                    reply = ()
                case Wait():
                    reply = self._wait(outcome, underway)
                case _:
                    self.clock.now += self._cost(outcome)
                    reply = self._reply(outcome)
            outcome = invocation.step(reply)
        raise AssertionError(f"asked more than {limit} times: {self.requests[-3:]}")

    def _wait(self, wait: Wait, underway: dict[int, tuple[float, Any]]) -> tuple[Any, ...]:
        for tag, request in wait.outstanding.new.items():
            underway[tag] = (self.clock.now + self._cost(request), request)
        wait.outstanding.new.clear()
        for tag in wait.outstanding.dropped:
            del underway[tag]
            self.dropped.append(tag)
        wait.outstanding.dropped.clear()
        first = min((at for at, _ in underway.values()), default=float("inf"))
        if wait.seconds is not None and self.clock.now + wait.seconds < first:
            self.clock.now += wait.seconds
            return ()
        self.clock.now = max(self.clock.now, first)
        done = [(tag, request) for tag, (at, request) in underway.items() if at <= self.clock.now]
        for tag, _ in done:
            del underway[tag]
        return tuple((tag, self._reply(request)) for tag, request in done)


def stage(source: str, **options: Any) -> Stage:
    """Set up a handler with `source` as its body; `at(text)` prints the seconds that have passed, too."""
    return Stage(f"{CLOCK}return function(body) {source}\nend", **options)


CLOCK = (
    f"local function at(text) print(((time.now():unix_nano() - {EPOCH * SECOND}) + 500000) // 1000000 / 1000,"
    " text) end "
)


def done(source: str, **options: Any) -> list[str]:
    """Run `source` as a handler's body to success; what it printed."""
    running = stage(source, **options)
    finished = running.run()
    assert finished == Finished(), finished.error and finished.error.text
    return running.printed


def failure(source: str, **options: Any) -> str:
    """Run `source` as a handler's body to failure; the error's text."""
    error = stage(source, **options).run().error
    assert error is not None
    return error.text


def publishes(requests: list[Any]) -> list[str]:
    """List the queues that were published to without anything else going on."""
    return [request.queue_id for request in requests if isinstance(request, Publish)]
