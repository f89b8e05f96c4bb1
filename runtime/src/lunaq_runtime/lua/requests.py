"""The contract between Lua and the worker: what an invocation may ask for, and how it ends.

`Invocation.step` runs Lua until it needs something (a request below) or is over (`Finished`). The worker
carries the request out and calls `step` again with the reply. A reply is what the Lua call returns, as a
tuple of plain values and `HandlerError`s, e.g. `(True, None)` or `(None, HandlerError(...))`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from lunaq_runtime.entries.model import Tls
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
    `ended` is what a run that went ahead has come to: the outcome once this is confirmed. The Lua state is
    free already then, and there is nobody to give a reply to; where it is refused, the run is void.
    """

    queue_id: str
    value: Any
    headers: dict[str, Any]
    ended: Finished | None = None


@dataclass(frozen=True, slots=True)
class Settle:
    """`msg:ack()` or `msg:nack()`; the slot is already claimed. Reply `(True, None)` or `(None, error)`."""

    ack: bool


@dataclass(frozen=True, slots=True)
class Info:
    """`queue.info(queue_id)`. Reply `(dict, None)` or `(None, error)`."""

    queue_id: str


@dataclass(frozen=True, slots=True)
class HttpFile:
    """One part of a multipart body."""

    name: str
    filename: str
    content: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class HttpCall:
    """One request of `http_client`, checked. `timeout` is in seconds; `max_body` None: no bound, streamed."""

    method: str
    url: str
    headers: dict[str, str]
    query: dict[str, str]
    cookies: dict[str, str]
    form: dict[str, str] | None
    body: bytes | None
    files: tuple[HttpFile, ...]
    auth: tuple[str, str] | None = field(repr=False)
    timeout: float
    stream: bool
    max_body: int | None
    tls: Tls | None


@dataclass(slots=True)
class Streams:
    """The response streams of one invocation, which calls `close`, from any thread, when it is over."""

    open: list[int] = field(default_factory=list)
    close: Callable[[], None] = field(default=lambda: None)


@dataclass(frozen=True, slots=True)
class HttpCalls:
    """`http_client.get` and the like: reply `(response, None)` or `(None, error)`, a response being a dict
    as lua-api.md 3.10 has it, with `stream_id` where it is streamed.

    With `batch`: reply `(responses, errors or None)`, dicts by place. `can` asks the policy about a URL.
    """

    requests: tuple[HttpCall, ...]
    streams: Streams
    batch: bool
    can: Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class HttpRead:
    """`stream:read(count)`: reply `(bytes, None)`, `(None, None)` at the end, or `(None, error)`."""

    stream: int
    count: int


@dataclass(frozen=True, slots=True)
class HttpClose:
    """`stream:close()`: reply `(True, None)`."""

    stream: int


Single = Sleep | Publish | Info | HttpCalls | HttpRead | HttpClose
"""What may be carried out while other coroutines of the handler go on."""


@dataclass(slots=True)
class Outstanding:
    """Requests of several coroutines of one invocation, each under a tag of its own.

    The invocation puts requests into `new` and tags that nobody waits for any more into `dropped`; whoever
    carries them out (`worker.gather`) takes both away. It keeps its own state in `carrier`, and the
    invocation calls `close`, from any thread, when it is over. `asked` are all that are not answered yet, and
    `weights` the bytes that each of them takes from the memory limit.
    """

    asked: dict[int, Single] = field(default_factory=dict)
    tag: int = 0
    new: dict[int, Single] = field(default_factory=dict)
    dropped: list[int] = field(default_factory=list)
    weights: dict[int, int] = field(default_factory=dict)
    carrier: Any = None
    close: Callable[[], None] = field(default=lambda: None)


@dataclass(frozen=True, slots=True)
class Wait:
    """Go on with what is outstanding. Reply: a tuple of `(tag, reply)` of what is done, at least one.

    After `seconds`, if given, the reply is `()`. What is not done goes on meanwhile, until the next `Wait`.
    """

    outstanding: Outstanding
    seconds: float | None


Request = Single | Settle | Wait


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


@dataclass(frozen=True, slots=True)
class Void:
    """The run went ahead (prelude/ahead.lua) where it should not have: it begins anew, and waits this time.

    Nobody has seen anything of it. `state_lost` as in `Finished`.
    """

    state_lost: bool = False


PUBLISHED = (True, None)
"""The reply to most publishes; the same object each time."""

SUCCEEDED = Finished()
"""How most invocations end; the same object each time, so that a look at it is enough."""


REQUEST_WEIGHT = 4 * 1024
"""Bytes that a request is taken to use while it is carried out, besides what is to be sent."""

_VALUE_WEIGHT = 64


def weight_of(request: Single) -> int:
    """Tell how many bytes, about, a request takes in Python until it is answered."""
    if isinstance(request, Publish):
        return REQUEST_WEIGHT + _weight(request.value) + _weight(request.headers)
    if isinstance(request, HttpCalls):
        calls = request.requests
        bodies = sum(len(call.body or b"") + sum(len(file.content) for file in call.files) for call in calls)
        return REQUEST_WEIGHT * len(calls) + bodies
    return REQUEST_WEIGHT


def _weight(value: Any) -> int:
    if isinstance(value, (str, bytes)):
        return _VALUE_WEIGHT + len(value)
    if isinstance(value, dict):
        return _VALUE_WEIGHT + sum(_weight(key) + _weight(item) for key, item in value.items())
    if isinstance(value, list):
        return _VALUE_WEIGHT + sum(map(_weight, value))
    return _VALUE_WEIGHT
