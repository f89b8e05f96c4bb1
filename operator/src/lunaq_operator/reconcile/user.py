"""A Consumer's own broker user (`access: PerConsumer`): makes it, keeps its rights to the policy, rotates it.

What to do next is decided by `broker_users.next_step` from what the broker and the Secret say, one step at a
time, so that an operator that dies between any two goes on where it stopped. Called by the Consumer's
reconciler; what becomes of users that nobody wants is `orphans`' matter.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lunaq_operator import broker_users, events, kinds, names
from lunaq_operator.broker_users import Do, Grants, Seen
from lunaq_operator.conditions import Reason
from lunaq_operator.management import ManagementError
from lunaq_operator.reconcile import clashes, objects, resolve, user_secret
from lunaq_operator.reconcile.context import NotReady
from lunaq_operator.store import Key
from lunaq_runtime import ids
from lunaq_runtime.brokers.base import BrokerError

if TYPE_CHECKING:
    from lunaq_operator.broker_users import Step
    from lunaq_operator.reconcile.context import Context
    from lunaq_operator.reconcile.managements import Users
    from lunaq_operator.reconcile.user_secret import Kept
    from lunaq_operator.resources import Broker, Consumer, Queue
    from lunaq_operator.store import Obj
    from lunaq_runtime.policy import Policy

log = logging.getLogger(__name__)

_SOON = 2.0
_MOST_STEPS = 10
"""More than any state needs; what has not settled by then is looked at again."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A Consumer that is to have a user, with what it may do there."""

    obj: Obj
    consumer: Consumer
    queue: Queue
    queue_obj: Obj
    broker: Broker
    policy: Policy

    @property
    def broker_key(self) -> Key:
        """The Broker's key."""
        return Key(self.broker.namespace, self.broker.name)


@dataclass(frozen=True, slots=True)
class Provided:
    """What pods log in with, when to look again, and what could not be brought about."""

    username: str
    again: float | None = None
    problem: NotReady | None = None


async def widen(context: Context, wanted: Wanted) -> None:
    """Give more rights before the runtime is told of them, where nothing else is to do; errors can wait."""
    users = context.managements.get(wanted.broker_key)
    if users is None or users.retired or not resolve.is_ready(wanted.queue_obj):
        return
    grants, _ = _grants(context, wanted)
    for name, account in users.of(Key(*wanted.consumer.key)).items():
        before = users.granted.get(name)
        if before is None or before == grants or dict(account.permissions) != {users.vhost: before.texts()}:
            continue
        try:
            if grants.covers(before) and not await clashes.find(context, wanted.broker_key, users, grants):
                await users.grant(name, grants)
        except (ManagementError, BrokerError) as error:
            log.info("Consumer %s: its rights are widened later: %s", wanted.consumer.id, error)


async def provide(context: Context, wanted: Wanted) -> Provided:
    """Bring user, permissions and Secret about; NotReady where pods could not log in at all."""
    consumer = wanted.consumer
    slots = broker_users.slots(place(context, wanted.broker_key), *consumer.key)
    kept = await user_secret.read(context, consumer, slots)
    users = context.managements.get(wanted.broker_key)
    try:
        if users is None:
            raise _not_connected(context, wanted)
        return await _settle(context, wanted, users, kept)
    except ManagementError as error:
        problem = NotReady(Reason.MANAGEMENT_UNREACHABLE, str(error), context.settings.queue_recheck)
    except NotReady as outcome:
        problem = outcome
    # Pods that run, or start with credentials that worked, do not depend on the management API.
    if not kept.username or problem.revokes:
        raise problem
    if problem.reason == Reason.BROKER_NOT_READY:
        # The operator has just begun and nothing is known to be wrong: no reason to write a status.
        return Provided(kept.username, problem.again)
    return Provided(kept.username, problem.again, problem)


def place(context: Context, broker: Key) -> broker_users.Place:
    """Say which Broker of which cluster it is, for its users' names."""
    return broker_users.Place(context.settings.cluster_id, *broker)


async def revoke(context: Context, consumer: Key) -> float | None:
    """Delete a Consumer's users wherever they are: it may no longer use what it was given.

    Returns when to look again where one could not be deleted, in seconds.
    """
    again = None
    for users in context.managements.all():
        for name in users.of(consumer):
            log.warning("Consumer %s may no longer use its Broker: deleting its user %s", consumer, name)
            try:
                await users.drop(name)
            except ManagementError as error:
                log.warning("Consumer %s: %s", consumer, error)
                again = _SOON
    return again


def _not_connected(context: Context, wanted: Wanted) -> NotReady:
    broker = context.store[kinds.BROKERS].get(*wanted.broker_key) or {}
    text = f"Broker {wanted.broker.id}: its management API was not reached; its status says why"
    known = bool((broker.get("status") or {}).get("conditions")) and not resolve.is_ready(broker)
    reason = Reason.MANAGEMENT_UNREACHABLE if known else Reason.BROKER_NOT_READY
    # No sooner: the Broker's reconciler has all its Consumers looked at once it is there.
    return NotReady(reason, text, context.settings.queue_recheck)


async def _settle(context: Context, wanted: Wanted, users: Users, kept: Kept) -> Provided:
    """Take steps until there is none."""
    grants, problem = _grants(context, wanted)
    _refuse_unready(wanted, users, grants)
    clash = await clashes.find(context, wanted.broker_key, users, grants)
    if clash:
        raise NotReady(Reason.CONFLICT, clash, context.settings.queue_recheck, revokes=True)
    for _ in range(_MOST_STEPS):
        old_idle = await _old_idle(context, users, kept)
        seen = _seen(context, wanted, users, kept, grants, old_idle=old_idle)
        step = broker_users.next_step(seen)
        if step is None:
            return Provided(kept.username, _until_old(context, kept), problem)
        if step.do is Do.WAIT:
            await _tell_pods(context, wanted.consumer, kept)
            pause = min(_SOON, max(context.settings.rotation_settle, 0.2))
            return Provided(kept.username, pause, problem)
        kept = await _carry_out(context, wanted, users, kept, grants, step)
    return Provided(kept.username, _SOON, problem)


def _grants(context: Context, wanted: Wanted) -> tuple[Grants, NotReady | None]:
    """Derive the rights; where there are too many to say, without those by name, and with why."""
    queue = wanted.queue
    grants = broker_users.grants(
        wanted.policy,
        str(queue.id),
        queue.broker_side_name,
        retries=not queue.observed,
        named=_named(context, wanted.broker_key),
    )
    if len(grants.texts().write.encode()) <= broker_users.LARGEST_PATTERN:
        return grants, None
    text = (
        f"RBAC lets it publish to {len(grants.exchanges)} Queues by name, more than a broker's permission "
        "can hold, so it may publish to none of them; grant them without resourceNames"
    )
    retry = ids.retry_exchange_name(queue.broker_side_name)
    own = tuple(name for name in grants.exchanges if name == retry)
    return replace(grants, exchanges=own), NotReady(Reason.POLICY_TOO_LARGE, text)


def _named(context: Context, broker: Key) -> dict[str, str]:
    """Return the Broker's Queues whose exchange does not follow from their ID; empty: they take nothing."""
    named = {}
    for obj in context.store[kinds.QUEUES].by("told", broker):
        try:
            queue = resolve.queue_of(obj)
            resolve.broker_for(context.store, queue)
            resolve.refuse_conflict(context.store, obj, queue)
            name = "" if queue.observed else queue.broker_side_name
        except NotReady:
            name = ""
        if name != f"{obj['metadata']['namespace']}:{obj['metadata']['name']}":
            named[f"{obj['metadata']['namespace']}:{obj['metadata']['name']}"] = name
    return named


def _refuse_unready(wanted: Wanted, users: Users, grants: Grants) -> None:
    """Refuse a queue that was never ours: it might be another cluster's, on the same virtual host."""
    if resolve.is_ready(wanted.queue_obj) or grants.queue is None:
        return
    read = grants.texts().read
    accounts = users.of(Key(*wanted.consumer.key)).values()
    if not any(read == texts.read for account in accounts for texts in account.permissions.values()):
        text = f"Queue {wanted.queue.id} is not Ready; its status says why"
        raise NotReady(Reason.QUEUE_NOT_READY, text, _SOON)


def _seen(
    context: Context, wanted: Wanted, users: Users, kept: Kept, grants: Grants, *, old_idle: bool
) -> Seen:
    consumer = Key(*wanted.consumer.key)
    return Seen(
        slots=users.slots(consumer),
        vhost=users.vhost,
        accounts=users.of(consumer),
        current=kept.username,
        password=kept.password,
        wanted=grants,
        granted=users.granted,
        old_idle=old_idle,
        rotate=_rotation_due(context, wanted.obj, kept),
    )


def _rotation_due(context: Context, obj: Obj, kept: Kept) -> bool:
    token = _token(obj)
    if token and token != kept.rotated_for:
        return True
    longest = context.settings.credentials_max_age
    return bool(longest) and kept.age(context.now()) >= longest


def _until_old(context: Context, kept: Kept) -> float:
    """Return when to look again: the Secret is not watched, and its password may become too old."""
    longest = context.settings.credentials_max_age
    left = max(1.0, longest - kept.age(context.now())) if longest else float("inf")
    return min(left, context.settings.topology_recheck)


def _token(obj: Obj) -> str:
    return str((obj["metadata"].get("annotations") or {}).get(names.ANNOTATION_ROTATE) or "")


async def _old_idle(context: Context, users: Users, kept: Kept) -> bool:
    """Tell whether the other user can go: nobody is connected as it, or had time enough to change over."""
    old = _other(users, kept)
    if old is None:
        return False
    age = kept.age(context.now())
    if age < context.settings.rotation_settle:
        return False
    return age >= context.settings.rotation_deadline or not await users.management.connections(old)


def _other(users: Users, kept: Kept) -> str | None:
    """Return the user that is not the Secret's, if it is there."""
    if not kept.username:
        return None
    slot = kept.username[-1]
    old = kept.username[:-1] + next(other for other in broker_users.SLOTS if other != slot)
    return old if old in users.accounts else None


async def _carry_out(
    context: Context, wanted: Wanted, users: Users, kept: Kept, grants: Grants, step: Step
) -> Kept:
    """Do one step; returns the Secret as it is then."""
    if users.retired:
        text = f"Broker {wanted.broker.id} is being deleted, or connected to anew"
        raise NotReady(Reason.BROKER_NOT_READY, text, _SOON)
    match step.do:
        case Do.SWITCH:
            return await _switch(context, wanted, users, kept, grants, step.name)
        case Do.RESTORE:
            known = step.name in users.accounts
            await users.put(step.name, _hashed(kept.password))
            what = "had another password or other tags" if known else "had vanished"
            note = f"the broker user {step.name} {what}, and is as it should be again"
            await context.recorder.event(wanted.obj, events.WARNING, "Healed", note)
        case Do.GRANT:
            await users.grant(step.name, grants)
        case Do.NARROW:
            await users.narrow(step.name, grants)
        case Do.DROP:
            await users.drop(step.name)
            note = f"the broker user is now {kept.username}; {step.name} was deleted"
            await context.recorder.event(wanted.obj, events.NORMAL, "CredentialsRotated", note)
    return kept


async def _switch(
    context: Context, wanted: Wanted, users: Users, kept: Kept, grants: Grants, name: str
) -> Kept:
    """Make a user with a new password, and only then point the Secret at it."""
    password = secrets.token_urlsafe(32)
    fresh = name not in users.accounts
    await users.put(name, _hashed(password))
    await (users.grant(name, grants) if fresh else users.narrow(name, grants))
    rotated_for = _token(wanted.obj) or kept.rotated_for
    written = await user_secret.write(context, wanted.consumer, kept, name, password, rotated_for)
    await _tell_pods(context, wanted.consumer, written)
    return written


async def _tell_pods(context: Context, consumer: Consumer, kept: Kept) -> None:
    """Have kubelets sync the Secret at once, once per change of it."""
    key = Key(*consumer.key)
    if context.memory.told.get(key) != kept.rotated_at:
        await objects.annotate_pods(context, consumer, names.ANNOTATION_CREDENTIALS, kept.rotated_at)
        context.memory.told[key] = kept.rotated_at


def _hashed(password: str) -> str:
    return broker_users.hash_password(password, secrets.token_bytes(4))
