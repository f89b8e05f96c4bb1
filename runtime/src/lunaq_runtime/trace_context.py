"""W3C trace context in message headers, as pure functions; the worker's slots carry it, `spans` records it.

A handler's publishes belong to the trace of the message it handles, whether or not spans are recorded.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

PARENT = "traceparent"
STATE = "tracestate"

# Version ff is forbidden, as are ids of zeros (W3C Trace Context, section 3.2.2).
_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def carried(headers: Mapping[str, Any]) -> dict[str, str]:
    """Pick the trace headers of a message: empty where there are none, or where they are not valid."""
    parent, state = _text(headers.get(PARENT)), _text(headers.get(STATE))
    if parent is None or not _PARENT.fullmatch(parent):
        return {}
    return {PARENT: parent, STATE: state} if state else {PARENT: parent}


def _text(value: Any) -> str | None:
    """Read a header that a foreign client may have written as bytes."""
    if isinstance(value, bytes):
        return value.decode("ascii", "replace")
    return value if isinstance(value, str) else None
