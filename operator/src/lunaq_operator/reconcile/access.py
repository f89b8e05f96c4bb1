"""What a Consumer's pods log in with: the Broker's credentials, or a user of its own; for `consumer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lunaq_operator import kinds, names
from lunaq_operator.reconcile import user, user_secret
from lunaq_operator.resources import PER_CONSUMER, effective_access

if TYPE_CHECKING:
    from lunaq_operator.reconcile.context import Context, NotReady
    from lunaq_operator.store import Key


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
        await context.keep_finalizer(kinds.CONSUMERS, wanted.obj, present=True)
        provided = await user.provide(context, wanted)
        secret = names.credentials_secret_name(wanted.consumer.name)
        return Access(secret, provided.username, provided.again, provided.problem)
    finalizers = wanted.obj["metadata"].get("finalizers") or ()
    if names.FINALIZER in finalizers and not any(users.of(key) for users in context.managements.all()):
        await user_secret.delete(context, wanted.consumer)
        await context.keep_finalizer(kinds.CONSUMERS, wanted.obj, present=False)
    broker = wanted.broker
    return Access((broker.runtime_credentials_secret_ref or broker.credentials_secret_ref).name)
