"""Structured errors as handlers see them (lua-api.md 3.1).

`HandlerError` is plain Python and pure; `lua.bridge` makes it usable from Lua (methods, concatenation).
"""

from __future__ import annotations

from typing import Any

UNKNOWN = ""
INTERNAL = "Internal"
INVALID = "Invalid"
CANCELED = "Canceled"
NOT_FOUND = "NotFound"
CONFLICT = "Conflict"
ALREADY_EXISTS = "AlreadyExists"
TIMEOUT = "Timeout"
PERMISSION_DENIED = "PermissionDenied"
RATE_LIMITED = "RateLimited"
UNAVAILABLE = "Unavailable"

KINDS = {
    "UNKNOWN": UNKNOWN,
    "INTERNAL": INTERNAL,
    "INVALID": INVALID,
    "CANCELED": CANCELED,
    "NOT_FOUND": NOT_FOUND,
    "CONFLICT": CONFLICT,
    "ALREADY_EXISTS": ALREADY_EXISTS,
    "TIMEOUT": TIMEOUT,
    "PERMISSION_DENIED": PERMISSION_DENIED,
    "RATE_LIMITED": RATE_LIMITED,
    "UNAVAILABLE": UNAVAILABLE,
}
"""Constant name to value; the two are not equal (lua-api.md 3.1.1)."""


class HandlerError(Exception):
    """An error with a kind; raised in Python and passed through Lua as the same object.

    `retryable` is None if unknown; `details` is a dict of plain data or None; `contexts` are the texts of
    `errors.wrap`, outermost first; `frames` is the Lua stack at creation, as text lines.
    """

    def __init__(
        self,
        message: str,
        kind: str = UNKNOWN,
        *,
        retryable: bool | None = None,
        details: dict[str, Any] | None = None,
        contexts: tuple[str, ...] = (),
        frames: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.text = message
        self.kind_value = kind
        self.is_retryable = retryable
        self.detail_values = details or None
        self.contexts = contexts
        self.frames = frames
        self.burden: object | None = None  # what a Lua state counts for it (lua.memory)

    @property
    def size(self) -> int:
        """Estimate the bytes of its texts and details."""
        texts = len(self.text) + sum(map(len, self.contexts)) + sum(map(len, self.frames))
        return texts + (_size_of(self.detail_values) if self.detail_values else 0)


def _size_of(value: Any) -> int:
    """Estimate the bytes of plain data; each value counts as a small object."""
    if isinstance(value, dict):
        return sum(_size_of(key) + _size_of(item) for key, item in value.items()) + 64
    if isinstance(value, list):
        return sum(map(_size_of, value)) + 64
    return 56 + (len(value) if isinstance(value, (str, bytes)) else 0)


class HandlerLoadError(Exception):
    """A handler or one of its libraries does not load; the text names chunk, line and what to do."""
