"""What every reconciler is given: the store, the writers, the broker connections, the clock.

The one place that writes a status: it compares first, so that a pass that found nothing new makes no
request, and it tells an Event where `Ready` changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lunaq_operator import conditions, events, kinds, names
from lunaq_operator.conditions import Reason
from lunaq_operator.rbac import Rbac
from lunaq_operator.references import affected

if TYPE_CHECKING:
    from collections.abc import Callable

    from lunaq_operator.events import Recorder
    from lunaq_operator.kinds import Kind
    from lunaq_operator.kube import Kube
    from lunaq_operator.rbac import Derived
    from lunaq_operator.reconcile.managements import Managements
    from lunaq_operator.reconcile.pool import Pool
    from lunaq_operator.settings import Settings
    from lunaq_operator.store import Key, Obj, Store
    from lunaq_runtime.topology import Topology

_UNEVENTFUL = frozenset({Reason.PROGRESSING, Reason.DELETING})
"""Reasons on the way to somewhere, which nobody needs to be told of."""


class NotReady(Exception):  # noqa: N818 - an outcome that ends a reconcile early, not a mistake
    """The object cannot do its work: why, and when to look again (seconds, None: when something changes).

    `revokes`: nor may it go on with what it was given at the broker before.
    """

    def __init__(
        self, reason: Reason, message: str, again: float | None = None, *, revokes: bool = False
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.again = again
        self.revokes = revokes


class Wait(Exception):  # noqa: N818 - an outcome, as above
    """Nothing can be said yet, so nothing is written; to be looked at again after so many seconds."""

    def __init__(self, again: float) -> None:
        super().__init__()
        self.again = again


@dataclass(slots=True)
class Declared:
    """A topology on a broker, and when all of it was last looked at (monotonic)."""

    topology: Topology
    place: tuple[str, str]
    """Uid and URI of the Broker it was declared on."""

    looked: float


@dataclass(slots=True)
class Memory:
    """What is remembered between passes, only to spare work: all of it may be lost at any time."""

    declared: dict[Key, Declared] = field(default_factory=dict)
    """By Queue: what this process declared last."""

    counted: dict[Key, float] = field(default_factory=dict)
    """By Queue: when its counters were written last (monotonic)."""

    applied: dict[tuple[Kind, Key], tuple[str, str]] = field(default_factory=dict)
    """By object: the checksum applied last, and what the API server made of it."""

    failures: dict[Key, int] = field(default_factory=dict)
    """By Broker: how often in a row connecting failed."""

    checked: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    """By Consumer: the digest of the code that was compiled last, and the error, if there was one."""

    nudge: dict[Key, str] = field(default_factory=dict)
    """By Consumer: the checksum of a policy that its pods have yet to be told of."""

    derived: dict[Key, Derived] = field(default_factory=dict)
    """By Consumer: the policy that RBAC gave it last."""

    told: dict[Key, str] = field(default_factory=dict)
    """By Consumer: the credentials, by their time, that its pods were told of."""


@dataclass(slots=True)
class Context:
    """Handed to every reconciler."""

    store: Store
    kube: Kube
    recorder: Recorder
    pool: Pool
    managements: Managements
    settings: Settings
    enqueue: Callable[..., None]
    """`WorkQueue.add`."""

    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    memory: Memory = field(default_factory=Memory)
    _rbac: tuple[tuple[int, ...], Rbac] | None = None

    def rbac(self) -> Rbac:
        """Return the index of all RBAC objects, built anew where one of them changed."""
        generations = tuple(self.store[kind].generation for kind in kinds.RBAC if kind in self.store)
        if self._rbac is None or self._rbac[0] != generations:
            self._rbac = (generations, self._build_rbac())
        return self._rbac[1]

    def _build_rbac(self) -> Rbac:
        roles, bindings = (self.store[kind].objects.values() for kind in (kinds.ROLES, kinds.ROLE_BINDINGS))
        if kinds.CLUSTER_ROLES not in self.store:
            return Rbac.build(roles, bindings, None)
        cluster_roles, cluster_bindings = (
            self.store[kind].objects.values() for kind in (kinds.CLUSTER_ROLES, kinds.CLUSTER_ROLE_BINDINGS)
        )
        return Rbac.build(roles, bindings, cluster_roles, cluster_bindings)

    def timestamp(self) -> str:
        """Return the time of now as Kubernetes writes it."""
        return self.now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def ready_conditions(self, obj: Obj, status: str, reason: str, message: str) -> list[dict[str, Any]]:
        """Return the object's conditions with `Ready` and `Stalled` set."""
        return conditions.set_ready(
            (obj.get("status") or {}).get("conditions") or [],
            status,
            reason,
            message,
            obj["metadata"].get("generation") or 0,
            self.timestamp(),
        )

    async def keep_finalizer(self, kind: Kind, obj: Obj, *, present: bool) -> Obj:
        """Have our finalizer exactly where it is `present`; returns the object as it is now, or NotReady."""
        written = await self.kube.set_finalizer(kind, obj, names.FINALIZER, present=present)
        if written is None:
            raise NotReady(Reason.DELETING, "gone meanwhile")
        if written is not obj:
            self.store[kind].put(written)
        return written

    async def write_status(self, kind: Kind, obj: Obj, wanted: dict[str, Any]) -> None:
        """Bring the status to `wanted`, which is all of it; nothing is written where it is so already."""
        old = obj.get("status") or {}
        wanted = {"observedGeneration": obj["metadata"].get("generation") or 0} | {
            key: value for key, value in wanted.items() if value is not None
        }
        changes = status_changes(old, wanted)
        if not changes:
            return
        written = await self.kube.patch_status(kind, obj, changes)
        if written is None:
            return
        self.store[kind].put(written)
        before = conditions.find(old.get("conditions") or [], conditions.READY) or {}
        after = conditions.find(wanted.get("conditions") or [], conditions.READY) or {}
        same = (before.get("status"), before.get("reason")) == (after.get("status"), after.get("reason"))
        if not same:
            # The watch stays silent about what the store has from this answer already.
            for work in affected(kind, written, self.store):
                self.enqueue(work)
        if after and not same and after["reason"] not in _UNEVENTFUL:
            type_ = events.NORMAL if after["status"] == conditions.TRUE else events.WARNING
            await self.recorder.event(written, type_, after["reason"], after["message"] or after["reason"])


def status_changes(old: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Return the merge patch that makes `old` into `wanted`; empty where they are equal."""
    changes = {key: value for key, value in wanted.items() if old.get(key) != value or key not in old}
    return changes | {key: None for key in old if key not in wanted}
