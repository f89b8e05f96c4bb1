"""Time zones for the `time` module: which exist, and their offset at an instant."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

LOCAL = "Local"


def known(name: str) -> bool:
    """Tell whether the IANA zone `name` exists here."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def offset(name: str, seconds: int) -> int:
    """Return the offset from UTC in seconds of a zone at `seconds` since 1970; far dates have none."""
    try:
        if name == LOCAL:
            return time.localtime(seconds).tm_gmtoff
        moment = datetime.fromtimestamp(seconds, UTC)
        shift = moment.astimezone(ZoneInfo(name)).utcoffset()
    except (OverflowError, ValueError, OSError):
        return 0
    return int(shift.total_seconds()) if shift else 0


def abbreviation(name: str, seconds: int) -> str:
    """Return a zone's short name at `seconds` since 1970, such as CET; far dates have UTC."""
    try:
        if name == LOCAL:
            return time.localtime(seconds).tm_zone
        moment = datetime.fromtimestamp(seconds, UTC)
        return moment.astimezone(ZoneInfo(name)).tzname() or "UTC"
    except (OverflowError, ValueError, OSError):
        return "UTC"
