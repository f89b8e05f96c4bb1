"""What the Lua modules need of Python, one file a module; `lua.callbacks` offers it to the prelude.

Each callback is bounded in time and memory: it holds the GIL, which the event loop needs as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from lunaq_runtime.lua.errors import INVALID, PERMISSION_DENIED, HandlerError

if TYPE_CHECKING:
    from collections.abc import Callable

Functions = dict[str, "Callable[..., Any]"]


class Calls(Protocol):
    """What `lua.callbacks` gives the modules of one Lua state."""

    def can(self, action: str, resource: str) -> bool:
        """Ask the live policy."""

    def value(self, tokens: tuple[Any, ...]) -> Any:
        """Build the value that `S.with_tokens` sent."""

    def answering(self, function: Callable[..., Any]) -> Callable[..., tuple[bool, Any]]:
        """Make `function` return (True, its result as Lua has it), or (False, the HandlerError it raised)."""


def invalid(text: str) -> HandlerError:
    """Make the error of a call that can never succeed."""
    return HandlerError(text, INVALID, retryable=False)


def require(calls: Calls, action: str, resource: str) -> None:
    """Raise PermissionDenied where the policy says no."""
    if not calls.can(action, resource):
        raise HandlerError(
            f"not allowed: {action} on {resource}",
            PERMISSION_DENIED,
            retryable=False,
            details={
                "action": action,
                "resource": resource,
                "hint": "a security.policy entry lists it in `deny`: take it out there",
            },
        )


def whole(value: Any) -> int | None:
    """Return a number without a fraction as an integer, None for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None
