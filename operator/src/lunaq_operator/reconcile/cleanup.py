"""Cleans up after a Queue with `deletionPolicy: Delete`, and never hangs the deletion (trap T4).

What was found out ends in one of three ways: the topology is deleted and the finalizer released; nothing
can be deleted any more (Broker or Secret gone, refused), so it is released at once; or it may still work
out (broker away, messages left), so it is tried again until the deadline. What stays is told by an Event.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import TYPE_CHECKING

from lunaq_operator import compile as compiler
from lunaq_operator import conditions, events, kinds, names
from lunaq_operator.conditions import Reason
from lunaq_operator.reconcile import resolve
from lunaq_operator.reconcile.context import NotReady
from lunaq_operator.store import Key
from lunaq_runtime import topology
from lunaq_runtime.brokers.base import BrokerError

if TYPE_CHECKING:
    from lunaq_operator.reconcile.context import Context
    from lunaq_operator.resources import Queue
    from lunaq_operator.store import Obj
    from lunaq_runtime.brokers.base import Broker
    from lunaq_runtime.topology import Topology

log = logging.getLogger(__name__)

_PAUSE = 3.0


async def clean_up(context: Context, key: Key, obj: Obj) -> float | None:
    """Delete what the Queue declared, or find out that it stays; returns seconds until the next try."""
    if names.FINALIZER not in (obj["metadata"].get("finalizers") or ()):
        return None
    try:
        queue = resolve.queue_of(obj)
        if queue.deletion_policy == "Delete":
            await _delete(context, obj, queue)
            await context.recorder.event(
                obj, events.NORMAL, "Deleted", f"{queue.broker_side_name} was deleted from the broker"
            )
    except NotReady as outcome:
        left = context.settings.cleanup_deadline - _seconds_since(context, obj)
        if outcome.again is not None and left > 0:
            await _tell(context, obj, outcome)
            return min(_PAUSE, left)
        note = f"its topology stays on the broker: {outcome.message}"
        await context.recorder.event(obj, events.WARNING, "TopologyKept", note)
        log.warning("Queue %s is released, %s", key, note)
    await context.kube.set_finalizer(kinds.QUEUES, obj, names.FINALIZER, present=False)
    return None


async def _tell(context: Context, obj: Obj, outcome: NotReady) -> None:
    ready = context.ready_conditions(obj, conditions.FALSE, outcome.reason, outcome.message)
    await context.write_status(kinds.QUEUES, obj, (obj.get("status") or {}) | {"conditions": ready})


async def _delete(context: Context, obj: Obj, queue: Queue) -> None:
    """Delete the topology; NotReady with `again` None where waiting is of no use."""
    broker = resolve.broker_for(context.store, queue)
    resolve.refuse_conflict(context.store, obj, queue)
    users = resolve.depends_on_dead_letters(context.store, obj)
    if users:
        text = f"dead letters of {', '.join(map(str, users))} go there; change their spec.deadLetter"
        raise NotReady(Reason.QUEUE_NOT_EMPTY, text, _PAUSE)
    pooled = context.pool.get(Key(broker.namespace, broker.name))
    if pooled is None or not pooled.broker.connected:
        raise NotReady(
            Reason.BROKER_UNREACHABLE,
            f"Broker {broker.name} is not connected",
            None if _hopeless(context, broker.namespace, broker.name) else _PAUSE,
        )
    settings = compiler.queue_settings(queue, cluster=context.settings.cluster_id, declare=True)
    if queue.dead_letter is not None:
        settings = compiler.queue_settings(
            queue,
            cluster=context.settings.cluster_id,
            dead_letter=resolve.dead_letter_of(context.store, queue),
            declare=True,
        )
    forced = (obj["metadata"].get("annotations") or {}).get(names.ANNOTATION_DELETE_MESSAGES) == "true"
    try:
        await _delete_topology(pooled.broker, topology.topology_of(settings), forced=forced)
    except BrokerError as error:
        raise resolve.refusal(error, _PAUSE) from error


async def _delete_topology(broker: Broker, found: Topology, *, forced: bool) -> None:
    """Delete exchanges, then queues; what arrives between the look and the exchanges' end is put back."""
    if not forced:
        _refuse_messages(await _count(broker, found))
    order = topology.deletion_order(found)
    for kind, name in order:
        if kind == "exchange":
            await broker.delete_exchange(name)
    if not forced:
        late = await _count(broker, found)
        if late:
            await broker.declare(found)
            _refuse_messages(late)
    for kind, name in order:
        if kind == "queue":
            await broker.delete_queue(name)


def _refuse_messages(held: list[str]) -> None:
    if held:
        raise NotReady(
            Reason.QUEUE_NOT_EMPTY,
            f"{', '.join(held)}; to delete them with their messages, run: kubectl annotate queue <name> "
            f"{names.ANNOTATION_DELETE_MESSAGES}=true",
            _PAUSE,
        )


async def _count(broker: Broker, found: Topology) -> list[str]:
    """Say which queues hold messages, or may: what a consumer has in flight is not in a queue's count."""
    held = []
    for queue in found.queues:
        try:
            info = await broker.queue_info(queue.name)
        except BrokerError as error:
            if error.reason != "queue_not_found":
                raise
            continue
        if info.ready:
            held.append(f"{queue.name} holds {info.ready} messages")
        elif info.consumers:
            held.append(f"{queue.name} has {info.consumers} consumers, which may hold messages")
    return held


def _hopeless(context: Context, namespace: str, name: str) -> bool:
    """Tell whether the Broker's own status says that only a user could bring the connection back."""
    broker = context.store[kinds.BROKERS].get(namespace, name) or {}
    stalled = conditions.find((broker.get("status") or {}).get("conditions") or [], conditions.STALLED)
    return stalled is not None and stalled.get("status") == conditions.TRUE


def _seconds_since(context: Context, obj: Obj) -> float:
    deleted = datetime.fromisoformat(obj["metadata"]["deletionTimestamp"])
    return (context.now() - deleted).total_seconds()
