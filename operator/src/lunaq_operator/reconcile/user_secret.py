"""The Secret with a Consumer's own broker user: read by name, never adopted, trusted only in its form.

Whoever may edit Secrets in the namespace may write anything into it, so a user name counts only where it is
one of the Consumer's two, and a password only where it is as we make them.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from lunaq_operator import broker_users, kinds, names, render
from lunaq_operator.conditions import Reason
from lunaq_operator.kube import KubeError
from lunaq_operator.reconcile.context import NotReady

if TYPE_CHECKING:
    from lunaq_operator.broker_users import Slots
    from lunaq_operator.reconcile.context import Context
    from lunaq_operator.resources import Consumer
    from lunaq_operator.store import Obj


@dataclass(frozen=True, slots=True)
class Kept:
    """What the Secret holds; empty texts where that cannot be used, `obj` None where there is no Secret."""

    obj: Obj | None = None
    username: str = ""
    password: str = ""
    rotated_for: str = ""
    rotated_at: str = ""

    def age(self, now: datetime) -> float:
        """Return for how many seconds it has held this user; for ever, where it does not say."""
        try:
            return (now - datetime.fromisoformat(self.rotated_at)).total_seconds()
        except (ValueError, TypeError):
            return float("inf")


async def read(context: Context, consumer: Consumer, slots: Slots) -> Kept:
    """Read the Secret; NotReady with NameConflict where one of its name is somebody else's."""
    name = names.credentials_secret_name(consumer.name)
    obj = await context.kube.get(kinds.SECRETS, consumer.namespace, name)
    if obj is None:
        return Kept()
    if not render.owned_by(obj, consumer):
        raise NotReady(
            Reason.NAME_CONFLICT,
            f"Secret {consumer.namespace}/{name} exists and is not this Consumer's; rename the Consumer, or "
            "delete the Secret",
            context.settings.source_recheck,
        )
    username, password = _value(obj, "username"), _value(obj, "password")
    if username not in slots or not broker_users.is_password(password):
        return Kept(obj)
    annotations = obj["metadata"].get("annotations") or {}
    return Kept(
        obj,
        username,
        password,
        rotated_for=str(annotations.get(names.ANNOTATION_ROTATED_FOR) or ""),
        rotated_at=str(annotations.get(names.ANNOTATION_ROTATED_AT) or ""),
    )


async def write(
    context: Context, consumer: Consumer, kept: Kept, username: str, password: str, rotated_for: str
) -> Kept:
    """Write the Secret in place of `kept`; KubeError 409 where it is no longer that."""
    rotated_at = context.now().astimezone(UTC).isoformat(timespec="milliseconds")
    annotations = {names.ANNOTATION_ROTATED_AT: rotated_at, names.ANNOTATION_ROTATED_FOR: rotated_for}
    manifest = render.credentials_secret(consumer, username, password, annotations)
    if kept.obj is None:
        written = await context.kube.create(kinds.SECRETS, manifest)
    else:
        version = {"resourceVersion": kept.obj["metadata"]["resourceVersion"]}
        metadata = {**manifest["metadata"], **version}
        changes = {"metadata": metadata, "data": manifest["data"]}
        written = await context.kube.patch(kinds.SECRETS, kept.obj, changes)
    if written is None:
        raise KubeError(409, "Conflict", f"Secret {manifest['metadata']['name']} was changed meanwhile")
    return Kept(written, username, password, rotated_for, rotated_at)


async def delete(context: Context, consumer: Consumer) -> None:
    """Delete the Secret of a Consumer that no longer has a user of its own."""
    name = names.credentials_secret_name(consumer.name)
    obj = await context.kube.get(kinds.SECRETS, consumer.namespace, name)
    if obj is not None and render.owned_by(obj, consumer):
        await context.kube.delete(kinds.SECRETS, obj)


def _value(secret: Obj, key: str) -> str:
    try:
        return base64.b64decode((secret.get("data") or {}).get(key) or "", validate=True).decode()
    except ValueError:
        return ""
