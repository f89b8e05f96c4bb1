"""Brings the objects of a Consumer to what they should be: compares, applies, prunes, never adopts."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from lunaq_operator import kinds, names, render
from lunaq_operator.conditions import Reason
from lunaq_operator.reconcile.context import NotReady
from lunaq_operator.store import key_of, uid_of

if TYPE_CHECKING:
    from lunaq_operator.reconcile.context import Context
    from lunaq_operator.resources import Consumer
    from lunaq_operator.store import Obj

ANNOTATION_APPLIED = f"{names.GROUP}/applied-checksum"
"""On each object: what was applied last, so that a field we no longer set is noticed after a restart."""

_OTHERS_ANNOTATIONS = "deployment.kubernetes.io/"
_BY_KIND = {kind.kind: kind for kind in kinds.OWNED}


async def apply(context: Context, consumer: Consumer, wanted: Obj) -> tuple[Obj, bool]:
    """Create or change one object where it is not as wanted; returns it, and whether it was written.

    NotReady with NameConflict where an object of that name is not this Consumer's. Between that look and
    the write somebody else may create one; the API server then refuses a second controller reference.
    """
    kind = _BY_KIND[wanted["kind"]]
    key = key_of(wanted)
    live = context.store[kind].get(*key)
    if live is None:
        live = await context.kube.get(kind, *key)
    if live is not None and not render.owned_by(live, consumer):
        raise NotReady(
            Reason.NAME_CONFLICT,
            f"{kind.kind} {key} exists and is not this Consumer's; rename the Consumer, or delete the "
            f"{kind.kind}",
            context.settings.source_recheck,
        )
    checksum = _digest(wanted)
    if live is not None and as_applied(live, wanted, checksum, context.memory.applied.get((kind, key))):
        return live, False
    metadata = wanted["metadata"]
    annotations = {**(metadata.get("annotations") or {}), ANNOTATION_APPLIED: checksum}
    body = {**wanted, "metadata": {**metadata, "annotations": annotations}}
    if live is not None:
        # Not one that takes its place meanwhile.
        body["metadata"]["uid"] = uid_of(live)
    written = await context.kube.apply(kind, body)
    context.memory.applied[kind, key] = (checksum, fingerprint(written))
    context.store[kind].put(written)
    return written, True


async def prune(context: Context, consumer: Consumer, wanted: list[Obj]) -> None:
    """Delete what the Consumer owns and no longer wants."""
    keep = {(obj["kind"], key_of(obj)) for obj in wanted}
    for kind in kinds.OWNED:
        for obj in context.store[kind].by("consumer", consumer.key):
            ours = render.owned_by(obj, consumer) and not obj["metadata"].get("deletionTimestamp")
            if ours and (kind.kind, key_of(obj)) not in keep:
                await context.kube.delete(kind, obj)


async def annotate_pods(context: Context, consumer: Consumer, annotation: str, value: str) -> None:
    """Patch an annotation onto the Consumer's pods, at which their kubelet syncs what they mount."""
    selector = ",".join(f"{name}={text}" for name, text in names.selector_labels(consumer.name).items())
    for pod in await context.kube.list(kinds.PODS, consumer.namespace, selector):
        await context.kube.patch(kinds.PODS, pod, {"metadata": {"annotations": {annotation: value}}})


def as_applied(live: Obj, wanted: Obj, checksum: str, applied: tuple[str, str] | None) -> bool:
    """Tell whether a live object is as wanted.

    It carries the checksum of what was applied, and is unchanged since: by what the API server answered to
    our own write, or, after a restart, by having everything that is wanted.
    """
    annotations = live["metadata"].get("annotations") or {}
    if annotations.get(ANNOTATION_APPLIED) != checksum:
        return False
    if applied is not None and applied[0] == checksum:
        return applied[1] == fingerprint(live)
    return contains(live, wanted)


def contains(live: Any, wanted: Any) -> bool:
    """Tell whether `live` has all that `wanted` has; what the API server added does not count."""
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(
            key in live and contains(live[key], value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(live, list)
            and len(live) == len(wanted)
            and all(contains(one, other) for one, other in zip(live, wanted, strict=True))
        )
    return bool(live == wanted)


def fingerprint(obj: Obj) -> str:
    """Digest what of an object is ours to say; not its status, versions, and others' annotations."""
    metadata = obj["metadata"]
    annotations = {
        key: value
        for key, value in (metadata.get("annotations") or {}).items()
        if not key.startswith(_OTHERS_ANNOTATIONS)
    }
    body = {key: value for key, value in obj.items() if key not in ("metadata", "status")}
    own = {key: metadata.get(key) for key in ("uid", "labels", "ownerReferences")}
    return _digest({**body, "metadata": {**own, "annotations": annotations}})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
