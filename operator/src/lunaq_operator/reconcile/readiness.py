"""What a Deployment's status says about its Consumer. Pure; the rules are those of kstatus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lunaq_operator import conditions
from lunaq_operator.conditions import Reason

if TYPE_CHECKING:
    from lunaq_operator.store import Obj

Ready = tuple[str, Reason, str]


def readiness(deployment: Obj, wanted: int, *, suspended: bool) -> Ready:
    """Return status, reason and message of `Ready` for `wanted` pods."""
    status: dict[str, Any] = deployment.get("status") or {}
    generation = deployment["metadata"].get("generation") or 0
    seen = (status.get("observedGeneration") or 0) >= generation
    total = status.get("replicas") or 0
    updated = status.get("updatedReplicas") or 0
    ready = status.get("availableReplicas") or 0
    if not seen or updated < wanted or total > updated or ready < wanted:
        return _not_yet(status, wanted, ready, total - updated)
    if suspended:
        return conditions.TRUE, Reason.SUSPENDED, "Nothing is consumed: spec.suspend is true"
    if wanted == 0:
        return conditions.TRUE, Reason.SCALED_TO_ZERO, "No pods are wanted"
    return conditions.TRUE, Reason.AVAILABLE, f"{ready} of {wanted} pods are ready"


def _not_yet(status: dict[str, Any], wanted: int, ready: int, old: int) -> Ready:
    rest = f", {old} old ones are still there" if old > 0 else ""
    text = f"{ready} of {wanted} pods are ready{rest}"
    found = status.get("conditions") or []
    progressing = conditions.find(found, conditions.PROGRESSING) or {}
    if progressing.get("status") == conditions.FALSE:
        why = progressing.get("message") or progressing.get("reason") or ""
        return conditions.FALSE, Reason.PODS_FAILING, f"{text}: {why}"
    failure = conditions.find(found, "ReplicaFailure") or {}
    if failure.get("status") == conditions.TRUE:
        return conditions.FALSE, Reason.PODS_FAILING, f"{text}: {failure.get('message') or ''}"
    return conditions.FALSE, Reason.PROGRESSING, text
