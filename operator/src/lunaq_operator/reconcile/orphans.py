"""Deletes broker users that nobody wants: of Consumers that went, that moved, and of Brokers that go.

Only users whose name says that this very Broker's operator made them are ever touched, and only where the
Consumer's namespace is served here: what another cluster, or a person, made is none of our business.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime
from typing import TYPE_CHECKING

from lunaq_operator import broker_users, events, kinds, names
from lunaq_operator.management import ManagementError
from lunaq_operator.references import Work, broker_of, queue_of
from lunaq_operator.resources import PER_CONSUMER, SpecError, effective_access, parse_broker
from lunaq_operator.store import Key

if TYPE_CHECKING:
    from lunaq_operator.reconcile.context import Context
    from lunaq_operator.reconcile.managements import Users
    from lunaq_operator.store import Obj

log = logging.getLogger(__name__)

_PAUSE = 2.0
_LONGEST_DRAIN = 45.0
"""Seconds that a Consumer's deletion may wait for its pods' connections; what is ours goes within 60."""


async def sweep(context: Context, key: Key, users: Users) -> None:
    """Delete the users of Consumers that are gone or have moved away; the latter once they are unused."""
    for name in list(users.accounts):
        consumer = _consumer_of(context, users, name)
        if consumer is None:
            continue
        obj = context.store[kinds.CONSUMERS].get(*consumer)
        if obj is None:
            log.info("Deleting the broker user %s: there is no Consumer %s any more", name, consumer)
            await users.drop(name)
        elif obj["metadata"].get("deletionTimestamp") or _wanted(context, obj, key):
            users.unwanted.pop(name, None)
        elif await _drop_unused(context, users, name):
            context.enqueue(Work(kinds.CONSUMERS.plural, consumer))  # its finalizer may go


async def clean_up_broker(
    context: Context, key: Key, obj: Obj, users: Users | None, why: str, *, hopeless: bool
) -> float | None:
    """Delete all users of a Broker that goes, and let it go; returns seconds until the next try.

    `users` None: the management API cannot be reached, `why` says so; `hopeless`: and will not be. Pods
    that go as well may end first.
    """
    over = _age(context, obj) >= context.settings.cleanup_deadline
    if users is not None:
        users.retired = True
        try:
            for name in list(users.accounts):
                if over or not await users.management.connections(name):
                    await users.drop(name)
            why = ""
        except ManagementError as error:
            why = str(error)
        if users.accounts and not over:
            return _PAUSE
    elif why and not over and not hopeless:
        return _PAUSE
    if why:
        prefix = broker_users.Place(context.settings.cluster_id, *key).prefix
        note = f"the broker users that begin with {prefix} stay there: {why}"
        await context.recorder.event(obj, events.WARNING, "UsersKept", note)
        log.warning("Broker %s is released, %s", key, note)
    await context.kube.set_finalizer(kinds.BROKERS, obj, names.FINALIZER, present=False)
    return None


async def clean_up_consumer(context: Context, key: Key, obj: Obj) -> float | None:
    """End a Consumer's pods, delete its users, and let it go; returns seconds until the next try."""
    if names.FINALIZER not in (obj["metadata"].get("finalizers") or ()):
        return None
    age = _age(context, obj)
    await _end_pods(context, key, obj)
    used, why = False, ""
    for users in context.managements.all():
        for name in users.of(key):
            try:
                if age < _LONGEST_DRAIN and await users.management.connections(name):
                    used = True
                else:
                    await users.drop(name)
            except ManagementError as error:
                why = str(error)
    if used:
        return 1.0
    why, hopeless = (why, False) if why else _out_of_reach(context, obj)
    if why and not hopeless and age < context.settings.cleanup_deadline:
        return _PAUSE
    if why:
        note = (
            f"its broker user {(obj.get('status') or {}).get('brokerUser') or ''} may still be there: {why}"
        )
        await context.recorder.event(obj, events.WARNING, "UserKept", note)
        log.warning("Consumer %s is released, %s", key, note)
    await context.kube.set_finalizer(kinds.CONSUMERS, obj, names.FINALIZER, present=False)
    return None


async def _end_pods(context: Context, key: Key, obj: Obj) -> None:
    """Have pods drain now: with their user gone, what they have in flight would come a second time."""
    deployment = context.store[kinds.DEPLOYMENTS].get(key.namespace, names.deployment_name(key.name))
    if deployment is None or deployment["metadata"].get("deletionTimestamp"):
        return
    owners = deployment["metadata"].get("ownerReferences") or ()
    if any(owner.get("uid") == obj["metadata"]["uid"] for owner in owners):
        await context.kube.delete(kinds.DEPLOYMENTS, deployment)


def _out_of_reach(context: Context, obj: Obj) -> tuple[str, bool]:
    """Say why a Consumer's user could not be looked for, and whether that will stay so."""
    namespace, slash, name = str((obj.get("status") or {}).get("broker") or "").partition("/")
    broker = context.store[kinds.BROKERS].get(namespace, name) if slash else None
    if broker is None or broker["metadata"].get("deletionTimestamp"):
        return "", True  # deleting a Broker deletes its users, and says what it could not
    if context.managements.get(Key(namespace, name)) is not None:
        return "", True
    conditions = (broker.get("status") or {}).get("conditions") or []
    stalled = any(one["type"] == "Stalled" and one["status"] == "True" for one in conditions)
    return f"the management API of Broker {namespace}/{name} is not reached", stalled


def _consumer_of(context: Context, users: Users, name: str) -> Key | None:
    found = broker_users.owner(users.made_from.place, name)
    if found is None or (context.settings.namespaces and found[0] not in context.settings.namespaces):
        return None
    return Key(*found)


def _wanted(context: Context, consumer: Obj, broker: Key) -> bool:
    """Tell whether a Consumer's user belongs at that Broker; where nothing can be said, it stays."""
    queue = context.store[kinds.QUEUES].get(*queue_of(consumer))
    if queue is None:
        return True
    if broker_of(queue) != broker:
        return False
    obj = context.store[kinds.BROKERS].get(*broker)
    try:
        return obj is None or effective_access(parse_broker(obj)) == PER_CONSUMER
    except SpecError:
        return True


async def _drop_unused(context: Context, users: Users, name: str) -> bool:
    """Delete a user that pods may still be changing over from, once they have; tells whether it did."""
    now = time.monotonic()
    age = now - users.unwanted.setdefault(name, now)
    if age < context.settings.rotation_settle:
        return False
    if age < context.settings.rotation_deadline and await users.management.connections(name):
        return False
    log.info("Deleting the broker user %s: its Consumer has gone elsewhere", name)
    await users.drop(name)
    return True


def _age(context: Context, obj: Obj) -> float:
    deleted = datetime.fromisoformat(obj["metadata"]["deletionTimestamp"])
    return (context.now() - deleted).total_seconds()
