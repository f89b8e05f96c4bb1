"""Whether a Consumer may consume, since when it may not, and what follows for its pods. Pure.

The condition `Authorized` remembers the withdrawal across restarts of the operator: pods stop consuming at
once, by the policy, and are stopped only after a while, so that a right given back works at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from lunaq_operator import conditions
from lunaq_runtime import policy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lunaq_runtime.policy import Policy

AUTHORIZED = "Authorized"
GRANTED = "Granted"
NOT_GRANTED = "NotGranted"
WITHDRAWN = "Withdrawn"


@dataclass(frozen=True, slots=True)
class Authorization:
    """What holds now; `again` is when the pods' time is over, in seconds from now."""

    allowed: bool
    reason: str
    runnable: bool
    again: float | None = None


def authorize(
    derived: Policy,
    queue_id: str,
    before: Iterable[Mapping[str, Any]],
    now: datetime,
    grace: float,
) -> Authorization:
    """Decide from the derived policy and from the conditions that stood before."""
    if derived.allows(policy.CONSUME, queue_id):
        return Authorization(allowed=True, reason=GRANTED, runnable=True)
    old = conditions.find(before, AUTHORIZED) or {}
    if old.get("status") == conditions.TRUE:
        return Authorization(allowed=False, reason=WITHDRAWN, runnable=True, again=grace)
    if old.get("reason") != WITHDRAWN:
        return Authorization(allowed=False, reason=NOT_GRANTED, runnable=False)
    since = datetime.fromisoformat(str(old["lastTransitionTime"]))
    left = grace - (now - since).total_seconds()
    if left > 0:
        return Authorization(allowed=False, reason=WITHDRAWN, runnable=True, again=left)
    return Authorization(allowed=False, reason=WITHDRAWN, runnable=False)
