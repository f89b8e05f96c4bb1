"""Reconciles Queues: declares their topology once per change, heals what vanished, tells the figures."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lunaq_operator import compile as compiler
from lunaq_operator import conditions, events, kinds
from lunaq_operator.conditions import Reason
from lunaq_operator.reconcile import cleanup, resolve
from lunaq_operator.reconcile.context import Declared, NotReady, Wait
from lunaq_operator.store import Key
from lunaq_runtime import ids, topology
from lunaq_runtime.brokers.base import BrokerError, queue_exists

if TYPE_CHECKING:
    from lunaq_operator.reconcile.context import Context
    from lunaq_operator.reconcile.pool import Pooled
    from lunaq_operator.resources import Queue
    from lunaq_operator.store import Obj
    from lunaq_runtime.brokers.base import Broker
    from lunaq_runtime.entries import model

_FIGURES = ("ready", "messages", "deadLettered")
_SOON = 2.0
_FIGURES_PAUSE = 10.0
"""Seconds between two writes of figures that moved."""

_OBSERVED = "Consuming works; publishing to it and delayed retry do not: managementPolicy is Observe"


async def reconcile(context: Context, key: Key) -> float | None:
    """Bring one Queue's topology and status up to date; returns seconds until the next look."""
    obj = context.store[kinds.QUEUES].get(*key)
    if obj is None:
        _forget(context, key)
        return None
    if obj["metadata"].get("deletionTimestamp"):
        _forget(context, key)
        return await cleanup.clean_up(context, key, obj)
    figures: dict[str, Any] = {}
    try:
        queue = resolve.queue_of(obj)
        obj = await _keep_finalizer(context, obj, queue)
        figures = await _bring_about(context, key, obj, queue)
    except Wait as wait:
        return wait.again
    except NotReady as outcome:
        ready = (conditions.FALSE, outcome.reason, outcome.message)
        again = outcome.again
    else:
        message = _OBSERVED if queue.observed else "Declared"
        ready = (conditions.TRUE, Reason.AVAILABLE, message)
        again = context.settings.queue_recheck
    await _write(context, key, obj, ready, figures)
    return again


async def _keep_finalizer(context: Context, obj: Obj, queue: Queue) -> Obj:
    """Have our finalizer exactly where the policy is Delete, before anything is declared."""
    wanted = queue.deletion_policy == "Delete" and not queue.observed
    return await context.keep_finalizer(kinds.QUEUES, obj, present=wanted)


async def _bring_about(context: Context, key: Key, obj: Obj, queue: Queue) -> dict[str, Any]:
    """Declare what is missing; returns the part of the status that only a working Queue has."""
    broker = resolve.broker_for(context.store, queue)
    resolve.refuse_conflict(context.store, obj, queue)
    dead_letter = resolve.dead_letter_of(context.store, queue)
    pooled = connection(context, broker.namespace, broker.name)
    settings = compiler.queue_settings(
        queue, cluster=context.settings.cluster_id, dead_letter=dead_letter, declare=True
    )
    try:
        if queue.observed:
            ready = (await pooled.broker.queue_info(queue.broker_side_name)).ready
            figures = {"ready": ready, "messages": ready}
        else:
            figures = await _declare(context, key, obj, pooled, settings)
    except BrokerError as error:
        raise _explain(error, queue, context.settings.queue_recheck) from error
    exchange = None if queue.observed else ids.exchange_name(queue.broker_side_name)
    return {
        "queueID": str(queue.id),
        "brokerQueueName": queue.broker_side_name,
        "exchange": exchange,
        **{name: rounded(count) for name, count in figures.items()},
    }


def connection(context: Context, namespace: str, name: str) -> Pooled:
    """Return the Broker's connection, which its own reconciler keeps.

    Wait while that reconciler has not said how it is; NotReady once it has said that there is none.
    """
    obj = context.store[kinds.BROKERS].get(namespace, name)
    pooled = context.pool.get(Key(namespace, name))
    if pooled is not None and pooled.broker.connected:
        return pooled
    if obj is not None and (resolve.is_ready(obj) or not obj.get("status")):
        raise Wait(_SOON)
    raise NotReady(Reason.BROKER_NOT_READY, f"Broker {namespace}/{name} is not connected", _SOON)


async def _declare(
    context: Context, key: Key, obj: Obj, pooled: Pooled, settings: model.Queue
) -> dict[str, int]:
    """Declare once per topology and place; after that, look passively and heal what is missing."""
    wanted = topology.topology_of(settings)
    place = (pooled.target.uid, pooled.target.uri)
    main, dead = settings.queue_name, topology.dead_letter_name(settings)
    declared = context.memory.declared.get(key)
    if declared is not None and (declared.topology, declared.place) == (wanted, place):
        missing = await _missing(context, pooled.broker, declared, (main, dead))
        if missing:
            note = f"{', '.join(missing)} had vanished from the broker and is declared again"
            await context.recorder.event(obj, events.WARNING, "Healed", note)
            await pooled.broker.declare(wanted)
    else:
        await pooled.broker.declare(wanted)
        context.memory.declared[key] = Declared(wanted, place, time.monotonic())
    ready = (await pooled.broker.queue_info(main)).ready
    dead_lettered = (await pooled.broker.queue_info(dead)).ready
    return {"ready": ready, "messages": ready, "deadLettered": dead_lettered}


async def _missing(
    context: Context, broker: Broker, declared: Declared, always: tuple[str, ...]
) -> list[str]:
    """Name what is not on the broker any more: of the queues `always`, and now and then of everything."""
    due = time.monotonic() - declared.looked >= context.settings.topology_recheck
    exchanges = [exchange.name for exchange in declared.topology.exchanges] if due else []
    queues = [queue.name for queue in declared.topology.queues if due or queue.name in always]
    missing = [f"exchange {name}" for name in exchanges if not await broker.exchange_exists(name)]
    missing += [f"queue {name}" for name in queues if not await queue_exists(broker, name)]
    if due:
        declared.looked = time.monotonic()
    return missing


def _explain(error: BrokerError, queue: Queue, again: float) -> NotReady:
    if error.reason == "queue_not_found" and queue.observed:
        text = (
            f"there is no queue {queue.broker_side_name} on the broker, and managementPolicy Observe "
            "declares none; have its owner declare it"
        )
        return NotReady(Reason.QUEUE_MISSING, text, again)
    return resolve.refusal(error, _SOON if error.reason == "queue_not_found" else again)


def rounded(count: int) -> int:
    """Round to two significant digits, so that a busy queue's status is not news at each look."""
    digits = len(str(count)) - 2
    return count if digits <= 0 else round(count, -digits)


async def _write(
    context: Context, key: Key, obj: Obj, ready: tuple[str, Reason, str], found: dict[str, Any]
) -> None:
    old = obj.get("status") or {}
    kept = {name: old.get(name) for name in ("queueID", "brokerQueueName", "exchange")}
    wanted = kept | found | {"conditions": context.ready_conditions(obj, *ready)}
    moved = any(name in old and old[name] != wanted.get(name) for name in _FIGURES)
    now = time.monotonic()
    if moved and found and now - context.memory.counted.get(key, 0.0) < _FIGURES_PAUSE:
        wanted |= {name: old[name] for name in _FIGURES if name in old}
    elif moved:
        context.memory.counted[key] = now
    await context.write_status(kinds.QUEUES, obj, wanted)


def _forget(context: Context, key: Key) -> None:
    context.memory.declared.pop(key, None)
    context.memory.counted.pop(key, None)
