"""Reconciles Consumers: policy first, then code and Deployment, then the status that follows from them.

The order is the point: a withdrawn right must reach the pods even where nothing else can be worked out,
and code that does not compile must leave alone what runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lunaq_operator import compile as compiler
from lunaq_operator import conditions, explain, kinds, names, pod_tls, render
from lunaq_operator.conditions import Reason
from lunaq_operator.reconcile import (
    access,
    authorization,
    code,
    objects,
    orphans,
    readiness,
    resolve,
    user,
)
from lunaq_operator.reconcile.authorization import AUTHORIZED, Authorization
from lunaq_operator.reconcile.context import NotReady
from lunaq_operator.references import service_account_of
from lunaq_operator.resources import SpecError, parse_consumer

if TYPE_CHECKING:
    from lunaq_operator.pod_tls import PodTls
    from lunaq_operator.reconcile.context import Context
    from lunaq_operator.reconcile.readiness import Ready
    from lunaq_operator.resources import Broker, Consumer, Queue
    from lunaq_operator.store import Key, Obj

    Resolved = tuple[Obj, Queue, Broker]


@dataclass(slots=True)
class Findings:
    """What one pass found out, for the status; filled in as far as the pass comes."""

    authorization: Authorization | None = None
    not_authorized: str = ""
    permissions: dict[str, Any] | None = None
    digest: str = ""
    broker: str = ""
    user: str | None = None
    """Its user at the broker, empty where it has none, None where that was not found out."""

    deployment: Obj | None = None
    again: float | None = None


async def reconcile(context: Context, key: Key) -> float | None:
    """Bring one Consumer's objects and status up to date; returns seconds until the next look."""
    obj = context.store[kinds.CONSUMERS].get(*key)
    if obj is None or obj["metadata"].get("deletionTimestamp"):
        _forget(context, key)
        return await orphans.clean_up_consumer(context, key, obj) if obj is not None else None
    found = Findings(deployment=context.store[kinds.DEPLOYMENTS].get(key.namespace, key.name))
    try:
        consumer = _parse(obj)
        ready = await _bring_about(context, key, obj, consumer, found)
        again = found.again
    except NotReady as outcome:
        ready = (conditions.FALSE, outcome.reason, outcome.message)
        again = _sooner(outcome.again, found.again)
    await _write(context, obj, ready, found)
    return again


def _parse(obj: Obj) -> Consumer:
    try:
        return parse_consumer(obj)
    except SpecError as error:
        raise NotReady(Reason.INVALID_SPEC, str(error)) from error


async def _bring_about(context: Context, key: Key, obj: Obj, consumer: Consumer, found: Findings) -> Ready:
    """Apply what is wanted as far as it can be worked out; returns what `Ready` is then."""
    resolved = _resolve_or_not(context, consumer)
    if not isinstance(resolved, NotReady):
        # What the broker allows grows before the runtime is told, and shrinks after that.
        await user.widen(context, _wanted_user(context, obj, consumer, *resolved))
    policy = await _apply_policy(context, key, obj, consumer, found)
    queue_obj, queue, broker, provided = await _provide_access(context, key, obj, consumer, resolved, found)
    source = await code.read(context, consumer)
    if code.reads_config_maps(consumer):
        found.again = _sooner(found.again, context.settings.source_recheck)
    code.check(context, consumer, source)
    entries = _entries(context, consumer, queue, broker, source)
    tls = pod_tls.pod_tls(broker, consumer.namespace)
    wanted, replicas = _objects(context, consumer, provided.secret, entries, queue_obj, found, tls)
    for manifest in wanted:
        applied, _ = await objects.apply(context, consumer, manifest)
        if manifest["kind"] == kinds.DEPLOYMENTS.kind:
            found.deployment = applied
    found.digest = code.digest(source)
    await objects.prune(context, consumer, [*wanted, policy])
    if found.not_authorized:
        raise NotReady(Reason.NOT_AUTHORIZED, found.not_authorized)
    if provided.problem is not None:
        raise provided.problem
    if not resolve.is_ready(queue_obj):
        raise NotReady(Reason.QUEUE_NOT_READY, f"Queue {queue.id} is not Ready; its status says why")
    assert found.deployment is not None  # noqa: S101 - it is among the wanted
    status, reason, message = readiness.readiness(found.deployment, replicas, suspended=consumer.suspend)
    if consumer.scaling is not None:
        message += "; spec.scaling is not implemented yet, spec.replicas counts"
    return status, reason, message


async def _apply_policy(context: Context, key: Key, obj: Obj, consumer: Consumer, found: Findings) -> Obj:
    """Bring the policy's ConfigMap up to date, and have kubelets sync it at once where it changed."""
    derived = context.rbac().derive(key.namespace, key.name, service_account_of(obj))
    context.memory.derived[key] = derived
    found.permissions = explain.status(derived)
    queue_id = f"{consumer.queue_ref.namespace}:{consumer.queue_ref.name}"
    before = (obj.get("status") or {}).get("conditions") or []
    found.authorization = authorization.authorize(
        derived.policy, queue_id, before, context.now(), context.settings.withdrawal_grace
    )
    found.again = found.authorization.again
    if not found.authorization.allowed:
        found.not_authorized = conditions.not_authorized(
            namespace=consumer.namespace,
            service_account=consumer.service_account,
            queue_namespace=consumer.queue_ref.namespace,
            queue=consumer.queue_ref.name,
        )
        if derived.unresolved:
            bindings = ", ".join(f"{source.binding} -> {source.role}" for source in derived.unresolved)
            found.not_authorized += f" (not readable in a namespaced installation: {bindings})"
    text = render.to_text(compiler.policy_document(consumer.id, derived.policy))
    manifest = render.policy_config_map(consumer, text)
    _, written = await objects.apply(context, consumer, manifest)
    if written:
        context.memory.nudge[key] = render.checksum(text)
    await _nudge(context, key, consumer)
    return manifest


async def _nudge(context: Context, key: Key, consumer: Consumer) -> None:
    """Patch the pods' annotation after a change of policy; repeated by backoff where that fails."""
    checksum = context.memory.nudge.get(key)
    if checksum is None:
        return
    await objects.annotate_pods(context, consumer, names.ANNOTATION_POLICY, checksum)
    del context.memory.nudge[key]


def _wanted_user(
    context: Context, obj: Obj, consumer: Consumer, queue_obj: Obj, queue: Queue, broker: Broker
) -> user.Wanted:
    derived = context.rbac().derive(consumer.namespace, consumer.name, service_account_of(obj))
    return user.Wanted(obj, consumer, queue, queue_obj, broker, derived.policy)


async def _provide_access(
    context: Context, key: Key, obj: Obj, consumer: Consumer, resolved: Resolved | NotReady, found: Findings
) -> tuple[Obj, Queue, Broker, access.Access]:
    """Bring about what pods log in with; takes it from them where it is no longer theirs."""
    try:
        if isinstance(resolved, NotReady):
            raise resolved
        wanted = _wanted_user(context, obj, consumer, *resolved)
        found.broker = str(wanted.broker_key)
        provided = await access.provide(context, key, wanted)
    except NotReady as outcome:
        if outcome.revokes:
            found.user = ""
            found.again = _sooner(found.again, await user.revoke(context, key))
        raise
    found.user = provided.username
    found.again = _sooner(found.again, provided.again)
    return (*resolved, provided)


def _resolve_or_not(context: Context, consumer: Consumer) -> Resolved | NotReady:
    """Follow the references once, for all of a pass; what stands against it is told later."""
    try:
        return _resolve(context, consumer)
    except NotReady as outcome:
        return outcome


def _resolve(context: Context, consumer: Consumer) -> Resolved:
    """Follow the reference to Queue and Broker, both of which must admit the Consumer's namespace."""
    ref = consumer.queue_ref
    obj = context.store[kinds.QUEUES].get(ref.namespace, ref.name)
    if obj is None:
        raise NotReady(
            Reason.QUEUE_MISSING,
            f"there is no Queue {ref.name} in namespace {ref.namespace}; create it, or change spec.queueRef",
        )
    try:
        queue = resolve.queue_of(obj)
        broker = resolve.broker_for(context.store, queue)
        resolve.refuse_conflict(context.store, obj, queue)
    except NotReady as outcome:
        text = f"Queue {ref.name}: {outcome.message}"
        raise NotReady(Reason.QUEUE_NOT_READY, text, revokes=outcome.revokes) from outcome
    if not resolve.admits(broker, consumer.namespace, context.store):
        raise NotReady(
            Reason.NOT_ALLOWED,
            f"Broker {broker.id} does not admit namespace {consumer.namespace}; its "
            "spec.allowedNamespaces decides",
            revokes=True,
        )
    return obj, queue, broker


def _entries(
    context: Context, consumer: Consumer, queue: Queue, broker: Broker, source: compiler.Code
) -> str:
    told = context.store[kinds.QUEUES].by("told", (broker.namespace, broker.name))
    if queue.dead_letter is not None:
        dead_letter = context.store[kinds.QUEUES].get(queue.namespace, queue.dead_letter.queue_ref.name)
        told += [dead_letter] if dead_letter is not None else []
    # By ID: the dead letter queue may be told for another reason as well. What cannot be parsed says so in
    # its own status, and nobody can publish to it.
    others = {other.id: other for other in map(_parsed, told) if other is not None}
    try:
        document = compiler.entries_document(
            consumer, queue, broker, source, cluster=context.settings.cluster_id, others=others.values()
        )
    except SpecError as error:
        raise NotReady(Reason.INVALID_SPEC, str(error)) from error
    return render.to_text(document)


def _parsed(obj: Obj) -> Queue | None:
    try:
        return resolve.queue_of(obj)
    except NotReady:
        return None


def _objects(
    context: Context,
    consumer: Consumer,
    credentials: str,
    entries: str,
    queue: Obj,
    found: Findings,
    tls: PodTls | None,
) -> tuple[list[Obj], int]:
    """Return all objects but the policy, in the order in which they are needed, and the replicas."""
    settings = context.settings
    assert found.authorization is not None  # noqa: S101 - the policy comes first
    # Pods that run go on without the operator's broker connection; new ones wait for their queue.
    startable = found.deployment is not None or resolve.is_ready(queue)
    replicas = render.wanted_replicas(consumer, runnable=found.authorization.runnable and startable)
    deployment = render.deployment(
        consumer,
        entries=entries,
        credentials_secret=credentials,
        runtime=render.Runtime(
            image=settings.runtime_image,
            image_pull_policy=settings.runtime_image_pull_policy,
            image_pull_secrets=settings.runtime_image_pull_secrets,
            otlp_endpoint=settings.otlp_endpoint,
        ),
        replicas=replicas,
        tls=tls,
    )
    account = render.service_account(consumer)
    accounts = [account] if account is not None else []
    return [*accounts, render.entries_config_map(consumer, entries), deployment], replicas


async def _write(context: Context, obj: Obj, ready: Ready, found: Findings) -> None:
    old = obj.get("status") or {}
    spec = obj.get("spec") or {}
    ref = spec.get("queueRef") or {}
    namespace = ref.get("namespace") or obj["metadata"]["namespace"]
    deployment = (found.deployment or {}).get("status") or {}
    labels = names.selector_labels(obj["metadata"]["name"])
    states = context.ready_conditions(obj, *ready)
    if found.authorization is not None:
        states = conditions.set_condition(
            states,
            AUTHORIZED,
            conditions.TRUE if found.authorization.allowed else conditions.FALSE,
            found.authorization.reason,
            found.not_authorized,
            obj["metadata"].get("generation") or 0,
            context.timestamp(),
        )
    wanted: dict[str, Any] = {
        "queue": f"{namespace}/{ref.get('name')}",
        "queueID": f"{namespace}:{ref.get('name')}",
        "serviceAccountName": service_account_of(obj),
        "broker": found.broker or old.get("broker"),
        "brokerUser": old.get("brokerUser") if found.user is None else found.user or None,
        "selector": ",".join(f"{name}={value}" for name, value in labels.items()),
        "replicas": deployment.get("replicas") or 0,
        "readyReplicas": deployment.get("readyReplicas") or 0,
        "permissions": found.permissions or old.get("permissions"),
        "handlerDigest": found.digest or old.get("handlerDigest"),
        "conditions": states,
    }
    await context.write_status(kinds.CONSUMERS, obj, wanted)


def _sooner(*pauses: float | None) -> float | None:
    return min((pause for pause in pauses if pause is not None), default=None)


def _forget(context: Context, key: Key) -> None:
    memory = context.memory
    memory.derived.pop(key, None)
    memory.nudge.pop(key, None)
    memory.checked.pop(key, None)
    memory.told.pop(key, None)
    for kind, name in (
        (kinds.DEPLOYMENTS, names.deployment_name(key.name)),
        (kinds.CONFIG_MAPS, names.entries_config_map_name(key.name)),
        (kinds.CONFIG_MAPS, names.policy_config_map_name(key.name)),
        (kinds.SERVICE_ACCOUNTS, names.service_account_name(key.name)),
    ):
        memory.applied.pop((kind, type(key)(key.namespace, name)), None)
