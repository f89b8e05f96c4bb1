"""One message's run through a Lua handler, step by step; made by `LuaState.start`, driven by the worker.

`step` runs in a worker thread and never raises; `interrupt` may come from any other thread.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from lunaq_runtime.durations import SECOND
from lunaq_runtime.lua import bridge, publishing
from lunaq_runtime.lua.bridge import shown
from lunaq_runtime.lua.errors import INTERNAL, INVALID, TIMEOUT, HandlerError
from lunaq_runtime.lua.memory import size_of
from lunaq_runtime.lua.operations import OPERATIONS, check_publish, check_publish_pairs
from lunaq_runtime.lua.publishing import BadArgumentError
from lunaq_runtime.lua.requests import (
    PUBLISHED,
    SUCCEEDED,
    Finished,
    Outstanding,
    Publish,
    Request,
    Settle,
    Single,
    Sleep,
    Streams,
    Void,
    Wait,
    weight_of,
)

if TYPE_CHECKING:
    from lunaq_runtime.lua.host import MessageContext
    from lunaq_runtime.lua.state import LuaState

logger = logging.getLogger(__name__)

OUT_OF_MEMORY = b"not enough memory"
"""What Lua raises at its memory limit; not a HandlerError, for that would need memory."""

_BESIDE = b"beside"
"""Before an operation: other coroutines go on while it is carried out."""
_LAST = b"last"
"""A run has succeeded but for a publish of pairs that it went ahead of."""
_AHEAD = b"ahead"
"""A run has ended otherwise, ahead of a publish."""
_VOID = b"void"
"""A run that went ahead should have waited."""
_WAIT = b"wait"
"""Nothing can go on before a reply, or so many nanoseconds."""


def timeout_error(seconds: float) -> HandlerError:
    """Make the error of a handler that exceeded its time limit."""
    return HandlerError(
        f"the handler exceeded its time limit of {seconds:g}s: make it faster or raise `timeout`",
        TIMEOUT,
        retryable=True,
    )


class Invocation:
    """Runs the handler of `state` on `body`, of `size` bytes if known; its time limit counts from now.

    `settled` is `ack` or `nack` once the handler has settled, `streams` are what it has open over HTTP.
    """

    # Defaults of the class, for one of these is made for each message.
    _error: HandlerError | None = None
    _started = False
    _finished: Finished | Void | None = None
    _asked: Request | None = None
    _outstanding: Outstanding | None = None
    settled = ""
    streams: Streams | None = None

    def __init__(self, state: LuaState, context: MessageContext, body: Any, size: int | None) -> None:
        self.state = state
        self._context = context
        self._body = body
        self._size = size
        self._deadline = state.monotonic() + state.handler.timeout

    @property
    def remaining(self) -> float:
        """Seconds left of the handler's time limit; negative once it is exceeded."""
        return self._deadline - self.state.monotonic()

    def interrupt(self, error: HandlerError) -> None:
        """Make running Lua code raise `error` soon, and a waiting one end at its next step."""
        self._error = self._error or error

    def abort(self, error: HandlerError) -> Finished | Void:
        """End it while it waits for a reply: it is never resumed, and its message is released."""
        if self._finished is None:
            try:
                self.state.lua_abandon()
            except Exception as failure:  # noqa: BLE001 - the state is lost, nothing else is to be done
                return self._finish(self._crash(failure), state_lost=True)
            self._finish(error)
        return self._finished or Finished(error)

    def step(self, reply: tuple[Any, ...] = ()) -> Request | Finished | Void:
        """Run Lua until it needs something or is over; `reply` answers the request before.

        After a publish with an end the state is another's, and nothing is to be answered.
        """
        if self._finished is not None:
            return self._finished
        if self._started or self._error:  # else its time has just begun
            ended = self._why_ended()
            if ended is not None:
                return self.abort(ended)
        try:
            return self._go_on(self._answer(reply) if self._started else self._begin())
        except Exception as failure:  # noqa: BLE001 - whatever it is, it ends this run only
            return self._failed(failure)

    def begun(self) -> None:
        """Be the one that Lua is at work on, started by `LuaState.start_batch`."""
        self._started = True
        self.state.callbacks.begin(self._context, self._why_ended)

    def carry_on(self, outcome: Any) -> Request | Finished | Void:
        """Take over what Lua came to in a batch, as if it were this invocation's first step."""
        try:
            return self._go_on(outcome)
        except Exception as failure:  # noqa: BLE001 - whatever it is, it ends this run only
            return self._failed(failure)

    def _why_ended(self) -> HandlerError | None:
        """Tell why running code must end; called by the count hook, too."""
        if self._error is None and self._deadline <= self.state.monotonic():
            self._error = timeout_error(self.state.handler.timeout)
        return self._error

    def _go_on(self, outcome: Any) -> Request | Finished | Void:
        """Do what Lua came to asks for, until that needs somebody else or it is over."""
        last = outcome.__class__ is tuple and outcome[0] == _LAST  # as most have who publish
        if last and not self.state.callbacks.out_of_memory:
            return self._last(outcome)
        return outcome if isinstance(outcome, Finished) else self._carry_out(outcome)

    def _carry_out(self, outcome: Any) -> Request | Finished | Void:
        """Do what any other outcome asks for."""
        callbacks = self.state.callbacks
        while True:
            if callbacks.out_of_memory:
                # It was refused a value and may have come to its end before the count hook could end it.
                return self._finish(self._out_of_memory(), state_lost=True)
            if outcome is None:
                return self._finish(None)
            word, *arguments = outcome if outcome.__class__ is tuple else (outcome,)
            beside = word == _BESIDE
            if beside:
                word, *arguments = arguments
            operation = OPERATIONS.get(word)
            if operation is None:
                return self._come_to(word, arguments)
            try:
                answer = operation(self, arguments)
            except BadArgumentError as error:
                outcome = self._resume(False, str(error).encode())
                continue
            if isinstance(answer, HandlerError):
                outcome = self._resume(True, None, answer)
                continue
            # Settling comes to its end before the handler can: nobody else would do it then.
            if beside and not isinstance(answer, Settle):
                tag = self._put(answer)
                self._make_room(())
                outcome = self.state.lua_pending(tag)
                continue
            self._asked = answer
            return answer

    def _come_to(self, word: bytes, arguments: list[Any]) -> Request | Finished | Void:
        """Take what is no operation: nothing more happens in Lua, at least for now."""
        if word == _AHEAD:
            return self._ahead(arguments)
        if word == _VOID:
            return self._take_back()
        return self._wait(*arguments) if word == _WAIT else self._end(word, *arguments)

    def _begin(self) -> Any:
        """Hand over the body; returns what Lua comes to, or Finished where the body cannot be handed over."""
        self._started = True
        state = self.state
        state.callbacks.begin(self._context, self._why_ended)
        body, self._body = self._body, None
        try:
            return state.begin(body, self._size)
        except ValueError as error:
            return self._finish(HandlerError(f"the body is {error}", INVALID, retryable=False))

    def _answer(self, reply: tuple[Any, ...]) -> Any:
        """Hand over the reply to what was asked; returns what Lua comes to."""
        if reply is PUBLISHED:
            self._make_room(True)
            return self.state.lua_start(None, True)
        asked = self._asked
        if asked is None:
            return self.state.lua_go_on()
        if not isinstance(asked, Wait):
            return self._resume(True, *self._to_lua(asked, reply))
        for tag, each in reply:
            request = self._take_away(asked.outstanding, tag)
            if request is not None:
                values = self._to_lua(request, each)
                self._make_room(tuple(values))
                self.state.lua_deliver(tag, *values)
        return self.state.lua_go_on()

    def _put(self, request: Single) -> int:
        """Add a request that is carried out while other coroutines go on."""
        if self._outstanding is None:
            self._outstanding = Outstanding()
        outstanding = self._outstanding
        outstanding.tag = tag = outstanding.tag + 1
        outstanding.new[tag] = outstanding.asked[tag] = request
        # What it takes is Python's: a handler that spawns without end is to meet its own memory limit.
        outstanding.weights[tag] = weight = weight_of(request)
        self.state.memory.lower(weight)
        return tag

    def _take_away(self, outstanding: Outstanding, tag: int) -> Single | None:
        """Forget a request that is answered, or that nobody waits for; None if it was forgotten before."""
        self.state.memory.lower(-outstanding.weights.pop(tag, 0))
        return outstanding.asked.pop(tag, None)

    def _wait(self, nanoseconds: int | None = None) -> Request:
        """Ask for a wait; without an outstanding request it is just a sleep."""
        seconds = None if nanoseconds is None else nanoseconds / SECOND
        outstanding, dropped = self._outstanding, self.state.callbacks.dropped
        if outstanding is not None:
            for tag in dropped:
                self._take_away(outstanding, tag)
            outstanding.dropped.extend(dropped)
            dropped.clear()
            if outstanding.asked:
                self._asked = Wait(outstanding, seconds)
                return self._asked
        self._asked = None
        return Sleep(seconds or 0.0)

    def _resume(self, *arguments: Any) -> Any:
        self._make_room(arguments)
        return self.state.lua_resume(*arguments)

    def _make_room(self, value: Any) -> None:
        """Raise MemoryError where handing over `value` would go beyond the limit."""
        memory = self.state.memory
        if value.__class__ is tuple:
            memory.burden(value)
        if self.state.callbacks.out_of_memory or not memory.fit(size_of(value)):
            raise MemoryError

    def _to_lua(self, asked: Request, reply: tuple[Any, ...]) -> list[Any]:
        if isinstance(asked, Publish):
            for value in reply:
                if isinstance(value, HandlerError) and not value.contexts:
                    value.contexts = (publishing.PUBLISH_FAILED,)
        elif isinstance(asked, Settle):
            for value in reply:
                if isinstance(value, HandlerError) and not value.contexts:
                    value.contexts = (f"{self.settled} failed",)
        return [value if isinstance(value, HandlerError) else self.state.to_lua(value) for value in reply]

    # Ahead of a publish ---------------------------------------------------------------------------------

    def _last(self, outcome: tuple[Any, ...]) -> Publish | Void:
        """Take a publish of pairs that its run went ahead of, and succeeded."""
        queue_id = outcome[1].decode("utf-8", "replace")
        if not self.state.host.may_publish(queue_id):
            return self._take_back()
        return Publish(queue_id, bridge.pairs(outcome[2:]), {}, self._finish(None))

    def _ahead(self, arguments: list[Any]) -> Publish | Void:
        """Take any publish that its run went ahead of, and what that came to: see `S.with_publish`."""
        count, operation, *rest = arguments
        asked, verdict = rest[: count - 1], rest[count - 1 :]
        pairs = operation == b"publish_pairs"
        name = asked[0 if pairs else 2]
        # Asked first, for the checks count denials, and the same publish comes again.
        allowed = name is not None and self.state.host.may_publish(shown(name))
        if not allowed or verdict[:1] == [b"other"]:
            return self._take_back()
        warnings: list[str] = []
        try:
            if pairs:
                publish = check_publish_pairs(self.state, asked)
            else:
                publish = check_publish(self.state, asked, warnings.append)
        except BadArgumentError:
            return self._take_back()
        if warnings or not isinstance(publish, Publish):
            return self._take_back()
        succeeded = not verdict or verdict[0] is None
        ended = self._finish(None) if succeeded else self._end(*verdict)
        if isinstance(ended, Void):
            return ended
        publish.ended = ended
        return publish

    def _take_back(self, *, state_lost: bool = False) -> Void:
        """End a run of which nobody has seen anything, and which begins anew."""
        self._finish(None)
        self._finished = void = Void(state_lost)
        return void

    # How it ends ----------------------------------------------------------------------------------------

    def _end(self, word: bytes, *arguments: Any) -> Finished | Void:
        """Judge what the handler returned or raised (lua-api.md 1.6.2)."""
        if word == b"raised":
            return self._raised(*arguments)
        if word == b"deadlock":
            return self._finish(HandlerError(shown(arguments[0]), INTERNAL, retryable=False))
        if word == b"false":
            return self._finish(_returned_false() if self.state.false_is_failure else None)
        if word == b"error":
            return self._finish(arguments[0])
        if word == b"text":
            return self._finish(HandlerError(shown(arguments[0]), INTERNAL, retryable=False))
        kind, with_false = arguments
        self.state.callbacks.warn(
            f"the handler's second return value is a {shown(kind)}, which is no error:"
            " return nil and an error of errors.new, or a text"
        )
        failed = with_false and self.state.false_is_failure
        return self._finish(_returned_false() if failed else None)

    def _raised(self, value: Any, trace: bytes, raises: int) -> Finished | Void:
        if value == OUT_OF_MEMORY or self.state.callbacks.out_of_memory:
            return self._finish(self._out_of_memory(), state_lost=True)
        if self.state.callbacks.voided and self._error is None:
            return self._take_back(state_lost=raises > 1)
        if raises:
            # Raised more than once, it was caught on the way: whoever caught it may have left a mess.
            return self._finish(self._error, state_lost=raises > 1)
        if isinstance(value, HandlerError):
            return self._finish(value)
        frames = tuple(line.strip() for line in shown(trace).split("\n")[1:])
        text = str(value) if isinstance(value, BaseException) else shown(value)
        return self._finish(HandlerError(text, INTERNAL, frames=frames))

    def _finish(self, error: HandlerError | None, *, state_lost: bool = False) -> Finished:
        if self.streams is not None:
            self.streams.close()
        if self._outstanding is not None:
            self._outstanding.close()
            self.state.callbacks.dropped.clear()
            self.state.memory.lower(-sum(self._outstanding.weights.values()))
            self._outstanding.weights.clear()
        self.state.finished()
        plain = error is None and not self.settled and not state_lost
        self._finished = finished = SUCCEEDED if plain else Finished(error, self.settled, state_lost)
        return finished

    def _failed(self, failure: Exception) -> Finished:
        """End it where Lua could not be gone on with."""
        if isinstance(failure, MemoryError):
            return self._finish(self._out_of_memory(), state_lost=True)
        logger.error("a step of a handler failed", exc_info=failure)
        return self._finish(self._crash(failure), state_lost=True)

    def _out_of_memory(self) -> HandlerError:
        limit = self.state.handler.memory_limit
        return HandlerError(
            f"the handler needs more than its memory limit of {limit} bytes: raise `memoryLimit`",
            INTERNAL,
            retryable=True,
            details={"reason": "out_of_memory"},
        )

    def _crash(self, failure: BaseException) -> HandlerError:
        if self.state.callbacks.out_of_memory:
            return self._out_of_memory()
        return HandlerError(f"internal error: {type(failure).__name__}: {failure}", INTERNAL, retryable=True)


def _returned_false() -> HandlerError:
    return HandlerError("the handler returned false", INTERNAL)
