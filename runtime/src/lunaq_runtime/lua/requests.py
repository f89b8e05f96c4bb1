"""The contract between Lua and the worker: what an invocation may ask for, and how it ends.

`Invocation.step` runs Lua until it needs something (a request below) or is over (`Finished`). The worker
carries the request out and calls `step` again with the reply. A reply is what the Lua call returns, as a
tuple of plain values and `HandlerError`s, e.g. `(True, None)` or `(None, HandlerError(...))`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lunaq_runtime.lua.errors import HandlerError


@dataclass(frozen=True, slots=True)
class Sleep:
    """`time.sleep`: reply `()` after so many seconds."""

    seconds: float


@dataclass(slots=True)  # not frozen: made for each publish, and that takes three times as long
class Publish:
    """`queue.publish` after all checks of lua-api.md 1.1.1 up to row 10 have passed.

    `value` is plain data (a deep copy), `headers` the collected headers argument, reserved ones already
    dropped. Reply `(True, None)`, or `(None, error)` of kind Internal, retryable, with `reason` in details.
    """

    queue_id: str
    value: Any
    headers: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Settle:
    """`msg:ack()` or `msg:nack()`; the slot is already claimed. Reply `(True, None)` or `(None, error)`."""

    ack: bool


@dataclass(frozen=True, slots=True)
class Info:
    """`queue.info(queue_id)`. Reply `(dict, None)` or `(None, error)`."""

    queue_id: str


Request = Sleep | Publish | Settle | Info


@dataclass(frozen=True, slots=True)
class Finished:
    """The invocation is over and its message wrapper is released.

    `error` is None for success (lua-api.md 1.6.2). `settled` is `ack` or `nack` where the handler settled
    explicitly, and then the outcome settles nothing. `state_lost`: the Lua state must be thrown away (out
    of memory, or interrupted where it cannot be trusted any more).
    """

    error: HandlerError | None = None
    settled: str = ""
    state_lost: bool = False


PUBLISHED = (True, None)
"""The reply to most publishes; the same object each time."""

SUCCEEDED = Finished()
"""How most invocations end; the same object each time, so that a look at it is enough."""
