"""What a Consumer's pods log in with: the Broker's credentials, or a user of its own; for `consumer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lunaq_operator import kinds, names
from lunaq_operator.conditions import Reason
from lunaq_operator.reconcile import user, user_secret
from lunaq_operator.reconcile.context import NotReady
from lunaq_operator.resources import PER_CONSUMER, effective_access

if TYPE_CHECKING:
    from lunaq_operator.reconcile.context import Context
    from lunaq_operator.store import Key, Obj


@dataclass(frozen=True, slots=True)
class Access:
    """The Secret to mount, the Consumer's own user (empty: none), when to look again, what went wrong."""

    secret: str
    username: str = ""
    again: float | None = None
    problem: NotReady | None = None


async def provide(context: Context, key: Key, wanted: user.Wanted) -> Access:
    """Bring about what the Broker's access asks for; NotReady where pods could not log in at all."""
    if effective_access(wanted.broker) == PER_CONSUMER:
        # Before there is a user that somebody would have to delete.
        await _set_finalizer(context, wanted.obj, present=True)
        provided = await user.provide(context, wanted)
        secret = names.credentials_secret_name(wanted.consumer.name)
        return Access(secret, provided.username, provided.again, provided.problem)
    finalizers = wanted.obj["metadata"].get("finalizers") or ()
    if names.FINALIZER in finalizers and not any(users.of(key) for users in context.managements.all()):
        await user_secret.delete(context, wanted.consumer)
        await _set_finalizer(context, wanted.obj, present=False)
    broker = wanted.broker
    return Access((broker.runtime_credentials_secret_ref or broker.credentials_secret_ref).name)


async def _set_finalizer(context: Context, obj: Obj, *, present: bool) -> None:
    written = await context.kube.set_finalizer(kinds.CONSUMERS, obj, names.FINALIZER, present=present)
    if written is None:
        raise NotReady(Reason.DELETING, "gone meanwhile")
    if written is not obj:
        context.store[kinds.CONSUMERS].put(written)
