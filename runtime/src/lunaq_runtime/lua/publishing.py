"""The checks of `queue.publish` and `queue.info`, as pure functions of the call's arguments.

`invocation` calls them when the Lua side of the module (`prelude/queue.lua`) has yielded its arguments;
the order and the texts are those of lua-api.md 1.1.1 and 1.7.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lunaq_runtime.lua.errors import INTERNAL, INVALID, PERMISSION_DENIED, HandlerError
from lunaq_runtime.lua.requests import Info, Publish
from lunaq_runtime.policy import INFO, PUBLISH, PUBLISH_TO

if TYPE_CHECKING:
    from collections.abc import Callable

    from lunaq_runtime.lua.host import Host

    Can = Callable[[str, str], bool]

PUBLISH_FAILED = "publish failed"
"""The context of every row 11 error; it shows in `err:stack()` only."""

_ROUTING_HEADERS = ("CC", "BCC")
_BROKER_HEADERS = frozenset({"x-death", "x-delivery-count", "x-acquired-count"})
_BROKER_PREFIXES = ("x-first-death-", "x-last-death-")


class BadArgumentError(Exception):
    """The call raises in Lua instead of returning an error."""


@dataclass(slots=True)
class Call:
    """The arguments of a call: how many, and argument 1's Lua type with its text if it is a string."""

    count: int
    id_type: str
    queue_id: str


@dataclass(slots=True)
class Payload:
    """Argument 2 and 3: `state` is `missing`, `empty` or `given`, `refusal` why it cannot be copied."""

    state: str
    refusal: str = ""
    value: Any = None
    headers: dict[Any, Any] = field(default_factory=dict)


def check_publish(
    call: Call, payload: Payload, can: Can, warn: Callable[[str], None]
) -> Publish | HandlerError:
    """Decide on one `queue.publish`: a request that has passed all checks, or the error it returns.

    `warn` is told of every header that is dropped. Raises BadArgumentError.
    """
    refused = _check_target(call, can) or _check_payload(call, payload)
    if refused:
        return refused
    headers = _collect_headers(payload.headers, warn) if payload.headers else {}
    if payload.refusal:
        return HandlerError(
            payload.refusal,
            INTERNAL,
            retryable=True,
            details={"reason": "encode_failed"},
            contexts=(PUBLISH_FAILED,),
        )
    return Publish(call.queue_id, payload.value, headers)


def check_pairs(queue_id: str, value: dict[Any, Any], host: Host) -> Publish | HandlerError:
    """Decide on a publish to an ID that is a text, of a table that can be copied, without headers."""
    refused = None if host.may_publish(queue_id) else _check_target(Call(2, "string", queue_id), host.can)
    return refused or Publish(queue_id, value, {})


def check_info(call: Call, can: Can) -> Info | HandlerError:
    """Decide on one `queue.info`. Raises BadArgumentError."""
    refused = _check_id(call, "info")
    if refused is None and not can(INFO, call.queue_id):
        return HandlerError(f"not allowed: {INFO} on {call.queue_id}", PERMISSION_DENIED, retryable=False)
    return refused or Info(call.queue_id)


def _check_target(call: Call, can: Can) -> HandlerError | None:
    """Rows 2 to 7."""
    if not can(PUBLISH, ""):
        return _no_right()
    refused = _check_id(call, "publish")
    if refused:
        return refused
    return None if can(PUBLISH_TO, call.queue_id) else _no_right_to(call.queue_id)


def _no_right() -> HandlerError:
    return _denied("queue publishing not allowed", PUBLISH, "")


def _no_right_to(queue_id: str) -> HandlerError:
    return _denied(f"not allowed to publish to queue: {queue_id}", PUBLISH_TO, queue_id)


def _check_payload(call: Call, payload: Payload) -> HandlerError | None:
    """Rows 8 to 10; headers never fail, except those that would route on their own."""
    if call.count < 2 or payload.state == "missing":  # noqa: PLR2004 - argument 2
        return _invalid("message data required")
    if payload.state == "empty":
        return _invalid("message data cannot be empty")
    for name in _ROUTING_HEADERS:
        if name in payload.headers:
            return _invalid(f"header '{name}' is not allowed: it routes on its own; publish to each queue")
    return None


def _check_id(call: Call, function: str) -> HandlerError | None:
    if call.count < 1:
        return _invalid("queue ID required")
    if call.id_type != "string":
        raise BadArgumentError(
            f"bad argument #1 to '{function}' (string expected, got {call.id_type}): pass a queue ID"
        )
    if not call.queue_id:
        return _invalid("queue ID required")
    return None


def _collect_headers(headers: dict[Any, Any], warn: Callable[[str], None]) -> dict[str, Any]:
    """Keep what lua-api.md 1.3 and 1.4.3 let a publisher set; a value of None is of another type."""
    collected = {}
    for key, value in headers.items():
        if not isinstance(key, str):
            warn(f"header {key!r} is dropped: its name is not UTF-8 text")
        elif _reserved(key):
            warn(f"header '{key}' is dropped: the name is reserved for Lunaq and the broker")
        elif value is None:
            warn(f"header '{key}' is dropped: its value must be a string, a number or a boolean")
        else:
            collected[key] = value
    return collected


def _reserved(key: str) -> bool:
    return (
        key.startswith("x_")
        or key == "attempts"
        or key in _BROKER_HEADERS
        or key.startswith(_BROKER_PREFIXES)
    )


def _invalid(message: str) -> HandlerError:
    return HandlerError(message, INVALID, retryable=False)


def _denied(message: str, action: str, resource: str) -> HandlerError:
    hint = "grant the Consumer's service account the verb `publish`: on its own Consumer for the right to "
    hint += "publish at all, and on the Queue; or list it in a security.policy entry"
    return HandlerError(
        message,
        PERMISSION_DENIED,
        retryable=False,
        details={"action": action, "resource": resource, "hint": hint},
    )
