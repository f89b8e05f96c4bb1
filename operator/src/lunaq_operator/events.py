"""Kubernetes Events on transitions a person would want to know; used by the reconcilers.

What is told again within a few minutes becomes a count on the first Event (`series`), so that a flapping
broker does not fill etcd. An Event that cannot be written is logged and forgotten: it is a courtesy.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lunaq_operator import kinds, names
from lunaq_operator.kube import KubeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lunaq_operator.kube import Kube
    from lunaq_operator.store import Obj

log = logging.getLogger(__name__)

NORMAL = "Normal"
WARNING = "Warning"

_SERIES = 360.0
_REMEMBERED = 2_000
_LONGEST_NOTE = 1024


@dataclass(slots=True)
class _Told:
    event: Obj
    at: float
    count: int = 1


class Recorder:
    """Writes Events; `instance` says which replica does, `clock` is monotonic."""

    def __init__(self, kube: Kube, instance: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube = kube
        self._instance = instance
        self._clock = clock
        self._told: OrderedDict[tuple[str, str, str], _Told] = OrderedDict()

    async def event(
        self, obj: Obj, type_: str, reason: str, note: str, *, action: str = "Reconcile", times: int = 1
    ) -> None:
        """Tell `note` about `obj`; `type_` is Normal or Warning, `times` how often it happened."""
        key = (obj["metadata"]["uid"], reason, note)
        told = self._told.get(key)
        try:
            if told is not None and self._clock() - told.at < _SERIES:
                await self._again(told, times)
            else:
                body = _event(obj, type_, reason, note, action, self._instance)
                if times > 1:
                    body["series"] = {"count": times, "lastObservedTime": _now()}
                created = await self._kube.create(kinds.EVENTS, body)
                if created is not None:
                    self._told[key] = _Told(created, self._clock(), times)
        except KubeError as error:
            log.warning("Could not write an event about %s: %s", obj["metadata"]["name"], error)
        while len(self._told) > _REMEMBERED:
            self._told.popitem(last=False)

    async def _again(self, told: _Told, times: int) -> None:
        told.at = self._clock()
        told.count += times
        series = {"count": told.count, "lastObservedTime": _now()}
        await self._kube.patch(kinds.EVENTS, told.event, {"series": series})


def _event(obj: Obj, type_: str, reason: str, note: str, action: str, instance: str) -> dict[str, Any]:
    metadata = obj["metadata"]
    text = note if len(note) <= _LONGEST_NOTE else note[: _LONGEST_NOTE - 1] + "…"
    return {
        "apiVersion": kinds.EVENTS.api_version,
        "kind": kinds.EVENTS.kind,
        "metadata": {
            "namespace": metadata.get("namespace") or "default",
            "name": f"{metadata['name'][:200]}.{secrets.token_hex(8)}",
        },
        "eventTime": _now(),
        "type": type_,
        "reason": reason,
        "note": text,
        "action": action,
        "reportingController": names.FIELD_MANAGER,
        "reportingInstance": instance,
        "regarding": {
            "apiVersion": obj["apiVersion"],
            "kind": obj["kind"],
            "namespace": metadata.get("namespace") or "",
            "name": metadata["name"],
            "uid": metadata["uid"],
            "resourceVersion": metadata.get("resourceVersion") or "",
        },
    }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
