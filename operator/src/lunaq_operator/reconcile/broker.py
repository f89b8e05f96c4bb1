"""Reconciles Brokers: reads the Secret, keeps the one connection, says in the status what it found."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

from lunaq_operator import conditions, kinds, names
from lunaq_operator.conditions import Reason
from lunaq_operator.reconcile.context import NotReady
from lunaq_operator.reconcile.pool import Target
from lunaq_operator.references import Work
from lunaq_operator.resources import PER_CONSUMER, SpecError, effective_access, parse_broker
from lunaq_operator.store import key_of
from lunaq_runtime.brokers.base import BrokerError

if TYPE_CHECKING:
    from lunaq_operator.reconcile.context import Context
    from lunaq_operator.resources import Broker
    from lunaq_operator.store import Key, Obj

_LONGEST_PAUSE = 30.0

_CONNECTION_FAILED = frozenset({Reason.BROKER_UNREACHABLE, Reason.ACCESS_REFUSED})
"""Failures after which an older connection of the same Broker may be kept (see `Pool.connect`)."""


async def reconcile(context: Context, key: Key) -> float | None:
    """Bring one Broker's connection and status up to date; returns seconds until the next look."""
    obj = context.store[kinds.BROKERS].get(*key)
    if obj is None or obj["metadata"].get("deletionTimestamp"):
        await context.pool.drop(key)
        context.memory.failures.pop(key, None)
        return None
    access: str | None = None
    again: float | None
    try:
        broker = parse(obj)
        access = effective_access(broker)
        _refuse_unimplemented(access)
        target = await read_target(context, broker)
        again = await _connect(context, key, target)
    except NotReady as outcome:
        if outcome.reason not in _CONNECTION_FAILED:
            await context.pool.drop(key)
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


def _refuse_unimplemented(access: str) -> None:
    if access == PER_CONSUMER:
        raise NotReady(
            Reason.NOT_IMPLEMENTED,
            "access PerConsumer is not implemented yet; set spec.access to Shared",
        )


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
