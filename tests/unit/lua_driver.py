"""Drives Lua handlers by hand for the `test_lua_*` modules: no worker, no broker, a host that remembers."""

from __future__ import annotations

from typing import Any

from lunaq_runtime.entries.model import Consumer, Document, Handler
from lunaq_runtime.entries.parse import parse
from lunaq_runtime.lua.requests import Finished
from lunaq_runtime.lua.state import Identity, LuaState, MessageContext
from lunaq_runtime.policy import PUBLISH, PUBLISH_TO

IDENTITY = Identity(consumer_id="app:consumer", queue_id="app:emails")


class Clock:
    """A monotonic clock that stands still until told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeHost:
    """Answers permission checks from `denied` and keeps what was asked and logged."""

    def __init__(self, denied: tuple[tuple[str, str], ...] = ()) -> None:
        self.denied = denied
        self.asked: list[tuple[str, str]] = []
        self.records: list[tuple[str, str, dict[str, Any], str]] = []

    def can(self, action: str, resource: str) -> bool:
        self.asked.append((action, resource))
        return (action, resource) not in self.denied

    def may_publish(self, queue_id: str) -> bool:
        return self.can(PUBLISH, "") and self.can(PUBLISH_TO, queue_id)

    def log(self, level: str, message: str, fields: dict[str, Any], logger_name: str) -> None:
        self.records.append((level, message, fields, logger_name))

    def printed(self) -> list[str]:
        return [message for level, message, _, _ in self.records if level == "info"]


def load(source: str, *, host: FakeHost | None = None, clock: Any = None, **fields: Any) -> LuaState:
    """Load a handler; `fields` are those of `entries.model.Handler`."""
    handler = Handler("app.lua", source, **fields)
    given = {"monotonic": clock} if clock else {}
    return LuaState(handler, host or FakeHost(), identity=IDENTITY, **given)


class Run:
    """One finished invocation: what it asked for, what it printed, how it ended."""

    def __init__(self, state: LuaState, host: FakeHost) -> None:
        self._state = state
        self._host = host
        self.requests: list[Any] = []
        self.finished = Finished()

    @property
    def printed(self) -> list[str]:
        return self._host.printed()

    def go(self, body: Any, context: MessageContext, replies: list[tuple[Any, ...]]) -> Run:
        invocation = self._state.start(context, body)
        outcome = invocation.step()
        waiting = list(replies)
        while not isinstance(outcome, Finished):
            self.requests.append(outcome)
            outcome = invocation.step(waiting.pop(0) if waiting else (True, None))
        self.finished = outcome
        return self


def run(
    source: str,
    body: Any = None,
    *,
    replies: list[tuple[Any, ...]] | None = None,
    context: MessageContext | None = None,
    host: FakeHost | None = None,
    **fields: Any,
) -> Run:
    """Run `source` as the body of a handler `function(body)` to its end; unanswered requests get `true`."""
    host = host or FakeHost()
    state = load(f"return function(body) {source}\nend", host=host, **fields)
    return Run(state, host).go(body, context or MessageContext("id-1"), replies or [])


def printed_by(source: str, body: Any = None, **given: Any) -> list[str]:
    """Run `source` like `run`, and return what it printed; it must not fail."""
    finished = run(source, body, **given)
    assert finished.finished.error is None, finished.finished.error
    return finished.printed


def document_of(*entries: dict[str, Any], **consumer: Any) -> Document:
    """Parse a document of one consumer on the memory broker, with more fields and more entries."""
    return parse(
        {
            "entries": [
                {"kind": "queue.driver.memory", "name": "memory"},
                {"kind": "queue.queue", "name": "work"},
                {
                    "kind": "queue.consumer",
                    "name": "worker",
                    "queue": "work",
                    "source": "return print",
                    **consumer,
                },
                *entries,
            ]
        }
    )


def consumer_of(*entries: dict[str, Any], **consumer: Any) -> Consumer:
    """Parse a document like `document_of`, and give its consumer."""
    return document_of(*entries, **consumer).consumers.popitem()[1]
