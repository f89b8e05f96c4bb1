"""Reconciles Brokers: reads the Secret, keeps the one connection, says in the status what it found."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

from lunaq_operator import broker_users, conditions, events, kinds, names
from lunaq_operator.conditions import Reason
from lunaq_operator.management import ManagementError
from lunaq_operator.reconcile import orphans
from lunaq_operator.reconcile.context import NotReady
from lunaq_operator.reconcile.managements import ManagementTarget
from lunaq_operator.reconcile.pool import Target
from lunaq_operator.references import Work
from lunaq_operator.resources import PER_CONSUMER, SpecError, effective_access, parse_broker
from lunaq_operator.store import Key, key_of
from lunaq_runtime.brokers.base import BrokerError

if TYPE_CHECKING:
    from lunaq_operator.reconcile.context import Context
    from lunaq_operator.resources import Broker
    from lunaq_operator.store import Obj

_LONGEST_PAUSE = 30.0

_CONNECTION_FAILED = frozenset(
    {Reason.BROKER_UNREACHABLE, Reason.ACCESS_REFUSED, Reason.MANAGEMENT_UNREACHABLE}
)
"""Failures after which an older connection of the same Broker may be kept (see `Pool.connect`)."""


async def reconcile(context: Context, key: Key) -> float | None:
    """Bring one Broker's connection and status up to date; returns seconds until the next look."""
    obj = context.store[kinds.BROKERS].get(*key)
    if obj is None or obj["metadata"].get("deletionTimestamp"):
        if obj is not None and names.FINALIZER in (obj["metadata"].get("finalizers") or ()):
            return await _clean_up(context, key, obj)
        await context.pool.drop(key)
        await context.managements.drop(key)
        context.memory.failures.pop(key, None)
        return None
    access: str | None = None
    again: float | None
    try:
        broker = parse(obj)
        access = effective_access(broker)
        obj = await _keep_finalizer(context, key, obj, broker)
        target = await read_target(context, broker)
        again = await _bring_about(context, key, obj, broker, target)
    except NotReady as outcome:
        if outcome.reason not in _CONNECTION_FAILED:
            await context.pool.drop(key)
            await context.managements.drop(key)
        status = conditions.FALSE
        reason, message, again = outcome.reason, outcome.message, outcome.again
    else:
        status, reason, message = conditions.TRUE, Reason.AVAILABLE, "Connected"
    await _write(context, key, obj, access, (status, reason, message))
    return again


def parse(obj: Obj) -> Broker:
    """Read a Broker; NotReady with InvalidSpec where it cannot be."""
    try:
        return parse_broker(obj)
    except SpecError as error:
        raise NotReady(Reason.INVALID_SPEC, str(error)) from error


async def read_target(context: Context, broker: Broker) -> Target:
    """Read the Secrets a connection needs; NotReady where one is missing or not given to this Broker."""
    again = context.settings.broker_recheck
    credentials = await _read_secret(context, broker, broker.credentials_secret_ref.name, again)
    if broker.runtime_credentials_secret_ref is not None:
        # Not used here, but what pods get must be this Broker's to give as well.
        await _read_secret(context, broker, broker.runtime_credentials_secret_ref.name, again)
    ca = certificate = private_key = b""
    server_name = ""
    if broker.tls is not None:
        server_name = broker.tls.server_name
        if broker.tls.ca_secret_ref is not None:
            ref = broker.tls.ca_secret_ref
            ca = value_of(await _read_secret(context, broker, ref.name, again), ref.key, again)
        if broker.tls.client_certificate_secret_ref is not None:
            pair = await _read_secret(context, broker, broker.tls.client_certificate_secret_ref.name, again)
            certificate, private_key = (value_of(pair, name, again) for name in ("tls.crt", "tls.key"))
    return Target(
        uid=broker.uid,
        uri=broker.cluster_uri,
        username=value_of(credentials, "username", again).decode(),
        password=value_of(credentials, "password", again).decode(),
        ca=ca,
        certificate=certificate,
        private_key=private_key,
        server_name=server_name,
    )


def value_of(secret: Obj, key: str, again: float) -> bytes:
    """Return one value of a Secret; NotReady, naming Secret and key, where it is missing or no base64."""
    name = secret["metadata"]["name"]
    text = (secret.get("data") or {}).get(key)
    if not text:
        raise NotReady(Reason.SECRET_MISSING, f"Secret {name} has no key {key}; add it", again)
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise NotReady(Reason.SECRET_MISSING, f"Secret {name}: {key} is not base64", again) from error


def check_label(secret: Obj, broker: str) -> str:
    """Return why a Secret is not the Broker's to use, empty where it is (design.md section 2, Broker)."""
    labels = secret["metadata"].get("labels") or {}
    if labels.get(names.LABEL_BROKER) == broker:
        return ""
    metadata = secret["metadata"]
    return (
        f"Secret {metadata['name']} is not given to this Broker; if it is meant to be, run: kubectl label "
        f"secret -n {metadata['namespace']} {metadata['name']} {names.LABEL_BROKER}={broker} --overwrite"
    )


async def _bring_about(context: Context, key: Key, obj: Obj, broker: Broker, target: Target) -> float:
    """Keep the connection and look at the users: each is tried, the first failure told."""
    failed: NotReady | None = None
    again = 0.0
    try:
        again = await _connect(context, key, target)
    except NotReady as outcome:
        failed = outcome
    try:
        await _look_at_users(context, key, obj, broker, target)
    except NotReady as outcome:
        failed = failed or outcome
    if failed is not None:
        raise failed
    return again


async def _keep_finalizer(context: Context, key: Key, obj: Obj, broker: Broker) -> Obj:
    """Have our finalizer where there are users to delete, before any is made."""
    users = context.managements.get(key)
    present = names.FINALIZER in (obj["metadata"].get("finalizers") or ())
    out_of_reach = users is None and broker.management is None
    left = present and not out_of_reach and (users is None or bool(users.accounts))
    wanted = effective_access(broker) == PER_CONSUMER or left
    if present and not wanted and out_of_reach:
        note = "the broker users of its Consumers stay there: spec.management is gone"
        await context.recorder.event(obj, events.WARNING, "UsersKept", note)
    return await context.keep_finalizer(kinds.BROKERS, obj, present=wanted)


async def _look_at_users(context: Context, key: Key, obj: Obj, broker: Broker, target: Target) -> None:
    """See how the broker's users are, delete those nobody wants, have the others' Consumers looked at."""
    before = context.managements.get(key)
    if names.FINALIZER not in (obj["metadata"].get("finalizers") or ()):
        await context.managements.drop(key)
        return
    if broker.management is None:
        # Not PerConsumer any more: what is left goes through the client that is still there.
        made_from = before.made_from if before is not None else None
    else:
        made_from = management_target(context, broker, target)
    if made_from is None:
        return
    try:
        users, changed = await context.managements.look(key, made_from)
        await orphans.sweep(context, key, users)
    except ManagementError as error:
        reason = Reason.ACCESS_REFUSED if error.refused else Reason.MANAGEMENT_UNREACHABLE
        raise NotReady(reason, str(error), context.settings.broker_recheck) from error
    owners = {broker_users.owner(users.made_from.place, name) for name in changed}
    concerned = {Key(*owner) for owner in owners if owner is not None}
    if users is not before:
        for queue in context.store[kinds.QUEUES].by("broker", key):
            concerned |= {key_of(one) for one in context.store[kinds.CONSUMERS].by("queue", key_of(queue))}
    for consumer in sorted(concerned):
        context.enqueue(Work(kinds.CONSUMERS.plural, consumer))


def management_target(context: Context, broker: Broker, target: Target) -> ManagementTarget:
    """Say what the client of a Broker's management API is made from."""
    return ManagementTarget(
        uri=broker.management_uri,
        vhost=broker.vhost,
        place=broker_users.Place(context.settings.cluster_id, broker.namespace, broker.name),
        target=target,
    )


async def _clean_up(context: Context, key: Key, obj: Obj) -> float | None:
    """Delete the users of a Broker that goes; with its Secret, or with the client that is there already."""
    users, why, hopeless = context.managements.get(key), "", False
    try:
        broker = parse(obj)
        if broker.management is not None:
            made_from = management_target(context, broker, await read_target(context, broker))
            users, _ = await context.managements.look(key, made_from)
    except NotReady as outcome:
        why, hopeless = outcome.message, True
    except ManagementError as error:
        why, users = str(error), None
    again = await orphans.clean_up_broker(context, key, obj, users, why, hopeless=hopeless)
    if again is None:
        await context.pool.drop(key)
        await context.managements.drop(key)
    return again


async def _read_secret(context: Context, broker: Broker, name: str, again: float) -> Obj:
    secret = await context.kube.get(kinds.SECRETS, broker.namespace, name)
    if secret is None:
        raise NotReady(
            Reason.SECRET_MISSING, f"there is no Secret {name} in namespace {broker.namespace}", again
        )
    refused = check_label(secret, broker.name)
    if refused:
        raise NotReady(Reason.SECRET_NOT_LABELLED, refused, again)
    return secret


async def _connect(context: Context, key: Key, target: Target) -> float:
    memory, recheck = context.memory, context.settings.broker_recheck
    try:
        fresh = await context.pool.connect(key, target)
    except BrokerError as error:
        memory.failures[key] = memory.failures.get(key, 0) + 1
        pause = min(_LONGEST_PAUSE, 2.0 ** min(memory.failures[key] - 1, 10))
        refused = error.reason == "access_refused"
        reason = Reason.ACCESS_REFUSED if refused else Reason.BROKER_UNREACHABLE
        raise NotReady(reason, str(error), recheck if refused else pause) from error
    memory.failures.pop(key, None)
    if fresh:
        for queue in context.store[kinds.QUEUES].by("broker", key):
            context.enqueue(Work(kinds.QUEUES.plural, key_of(queue)))
    pooled = context.pool.get(key)
    if pooled is None or not pooled.broker.connected:
        raise NotReady(Reason.BROKER_UNREACHABLE, "the connection was lost; reconnecting", 2.0)
    return recheck


async def _write(
    context: Context, key: Key, obj: Obj, access: str | None, ready: tuple[str, Reason, str]
) -> None:
    status, reason, message = ready
    wanted: dict[str, Any] = {
        "access": access,
        "conditions": context.ready_conditions(obj, status, reason, message),
    }
    pooled = context.pool.get(key)
    if pooled is not None:
        wanted["serverProduct"] = pooled.broker.server.product or None
        wanted["serverVersion"] = pooled.broker.server.version or None
    await context.write_status(kinds.BROKERS, obj, wanted)
