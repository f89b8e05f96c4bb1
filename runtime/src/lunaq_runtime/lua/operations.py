"""What a handler may ask Python for, one function for each word that the prelude yields.

`invocation` looks a word up in `OPERATIONS`. Each function turns the arguments that Lua left into a request
that has passed all checks, or into the error that the Lua call returns; none of them waits for anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lunaq_runtime.durations import SECOND
from lunaq_runtime.lua import bridge, publishing
from lunaq_runtime.lua.bridge import shown, take
from lunaq_runtime.lua.errors import HandlerError
from lunaq_runtime.lua.modules import http
from lunaq_runtime.lua.publishing import Call, Payload
from lunaq_runtime.lua.requests import HttpClose, Settle, Sleep, Streams

if TYPE_CHECKING:
    from collections.abc import Callable

    from lunaq_runtime.lua.invocation import Invocation
    from lunaq_runtime.lua.requests import Publish, Single
    from lunaq_runtime.lua.state import LuaState

    Operation = Callable[[Invocation, list[Any]], Single | Settle | HandlerError]


def check_publish(
    state: LuaState, arguments: list[Any], warn: Callable[[str], None]
) -> Publish | HandlerError:
    """Check a publish as the prelude yields any; BadArgumentError, which raises in Lua."""
    count, id_type, queue_id, given, refusal, *tokens = arguments
    stream = iter(state.callbacks.take_fed(tokens))
    value = take(stream)
    payload = Payload(shown(given), shown(refusal) if refusal else "", value, take(stream))
    call = Call(count, shown(id_type), shown(queue_id or b""))
    return publishing.check_publish(call, payload, state.host.can, warn)


def check_publish_pairs(state: LuaState, arguments: list[Any]) -> Publish | HandlerError:
    """Check a publish to an ID that is a text, of a table of texts, numbers and booleans."""
    queue_id, *pairs = arguments
    return publishing.check_pairs(shown(queue_id), bridge.pairs(pairs), state.host)


def _publish(invocation: Invocation, arguments: list[Any]) -> Publish | HandlerError:
    return check_publish(invocation.state, arguments, invocation.state.callbacks.warn)


def _publish_pairs(invocation: Invocation, arguments: list[Any]) -> Publish | HandlerError:
    return check_publish_pairs(invocation.state, arguments)


def _sleep(_invocation: Invocation, arguments: list[Any]) -> Sleep:
    return Sleep(arguments[0] / SECOND)


def _info(invocation: Invocation, arguments: list[Any]) -> Single | HandlerError:
    count, id_type, *rest = arguments
    call = Call(count, shown(id_type), shown(rest[0] or b"") if rest else "")
    return publishing.check_info(call, invocation.state.host.can)


def _ack(invocation: Invocation, _arguments: list[Any]) -> Settle:
    invocation.settled = "ack"
    return Settle(ack=True)


def _nack(invocation: Invocation, _arguments: list[Any]) -> Settle:
    invocation.settled = "nack"
    return Settle(ack=False)


def _http(invocation: Invocation, arguments: list[Any]) -> Single | HandlerError:
    return _http_calls(invocation, http.check_call, arguments)


def _http_batch(invocation: Invocation, arguments: list[Any]) -> Single | HandlerError:
    return _http_calls(invocation, http.check_batch, arguments)


def _http_calls(
    invocation: Invocation, check: Callable[..., Single], arguments: list[Any]
) -> Single | HandlerError:
    callbacks = invocation.state.callbacks
    invocation.streams = invocation.streams or Streams()
    try:
        return check(callbacks, invocation.streams, callbacks.value(tuple(arguments)))
    except HandlerError as error:
        return error


def _http_read(_invocation: Invocation, arguments: list[Any]) -> Single | HandlerError:
    try:
        return http.check_read(*arguments)
    except HandlerError as error:
        return error


def _http_close(_invocation: Invocation, arguments: list[Any]) -> Single:
    return HttpClose(arguments[0])


OPERATIONS: dict[bytes, Operation] = {
    b"sleep": _sleep,
    b"publish": _publish,
    b"publish_pairs": _publish_pairs,
    b"info": _info,
    b"ack": _ack,
    b"nack": _nack,
    b"http": _http,
    b"http_batch": _http_batch,
    b"http_read": _http_read,
    b"http_close": _http_close,
}
