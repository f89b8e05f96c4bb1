"""Resources -> entries: what pods run, in the one format between everything (design.md section 1).

Pure; called by the Consumer reconciler and by `lunaq run`, so that a laptop runs what a cluster runs. The
document's fields are those of `lunaq_runtime.entries.schema`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lunaq_operator import names, pod_tls
from lunaq_operator.resources import SpecError
from lunaq_runtime import durations
from lunaq_runtime.entries import model
from lunaq_runtime.ids import Id, dead_queue_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lunaq_operator.resources import Broker, Consumer, Queue
    from lunaq_runtime.policy import Policy

Document = dict[str, Any]

_FILE = "file://"


@dataclass(frozen=True, slots=True)
class Code:
    """A handler's Lua with all references followed: its source, and that of each library by name."""

    source: str
    libraries: Mapping[str, str] = field(default_factory=dict)


def entries_document(
    consumer: Consumer,
    queue: Queue,
    broker: Broker,
    code: Code,
    *,
    cluster: str,
    others: Iterable[Queue] = (),
) -> Document:
    """Compile a Consumer with its Queue and Broker.

    `others` are the Broker's other Queues, its dead letter Queue among them. Only those are written that
    the runtime could not derive from their ID, so that a new Queue does not restart every Consumer.
    SpecError: what cannot be compiled.
    """
    known = [queue, *(other for other in others if other.id != queue.id and _needs_telling(other, queue))]
    entries = [
        _driver(broker, consumer.namespace),
        *(
            _queue(one, broker, cluster=cluster)
            for one in sorted(known, key=lambda one: (one.id != queue.id, one.id))
        ),
        *(_library(name, source, consumer) for name, source in sorted(code.libraries.items())),
        _consumer(consumer, code),
    ]
    return {"version": "1.0", "namespace": consumer.namespace, "entries": entries}


def policy_document(consumer: Id, policy: Policy) -> Document:
    """Compile the document that `--policy` names."""
    entry = {
        "name": consumer.name,
        "kind": "security.policy",
        "consumer": str(consumer),
        "publish": policy.publish,
        "publishTo": list(policy.publish_to),
        "consume": list(policy.consume),
    }
    return {"version": "1.0", "namespace": consumer.namespace, "entries": [entry]}


def queue_settings(
    queue: Queue, *, cluster: str, dead_letter: Queue | None = None, declare: bool = False
) -> model.Queue:
    """Return the settings that `lunaq_runtime.topology.topology_of` describes the queue by.

    `dead_letter` is the Queue that `deadLetter` names, which the caller looked up.
    """
    default = model.Retry()
    retry = model.Retry(queue.retry.max_attempts, queue.retry.delays) if not queue.observed else default
    return model.Queue(
        id=queue.id,
        driver=_driver_id(queue.broker_ref.namespace, queue.broker_ref.name),
        queue_name=queue.broker_side_name,
        codec=queue.codec,
        type=queue.type.lower(),
        message_ttl_ms=queue.message_ttl,
        max_length=queue.max_length,
        max_length_bytes=queue.max_length_bytes,
        single_active_consumer=queue.single_active_consumer,
        max_priority=queue.max_priority,
        retry=retry,
        dead_letter=dead_letter.id if dead_letter else None,
        dead_letter_queue_name=(
            dead_letter.broker_side_name if dead_letter else dead_queue_name(queue.broker_side_name)
        ),
        declare=declare,
        observe=queue.observed,
        owner=names.queue_owner(cluster, queue.namespace, queue.name),
    )


def _needs_telling(other: Queue, queue: Queue) -> bool:
    """Tell whether the runtime must know another Queue by more than its ID."""
    if queue.dead_letter is not None and (other.namespace, other.name) == (
        queue.namespace,
        queue.dead_letter.queue_ref.name,
    ):
        return True
    return bool(other.queue_name) or other.codec != "json" or other.observed


def _driver_id(namespace: str, broker: str) -> Id:
    return Id(namespace, broker)


def _driver(broker: Broker, namespace: str) -> Document:
    return {
        "name": str(_driver_id(broker.namespace, broker.name)),
        "kind": "queue.driver.amqp",
        "url": broker.cluster_uri,
        **pod_tls.driver_fields(pod_tls.pod_tls(broker, namespace)),
    }


def _queue(queue: Queue, broker: Broker, *, cluster: str) -> Document:
    settings = queue_settings(queue, cluster=cluster)
    lunaq: Document = {
        "type": settings.type,
        "singleActiveConsumer": settings.single_active_consumer,
        "declare": settings.declare,
        "observe": settings.observe,
        "owner": settings.owner,
        "retry": {
            "maxAttempts": settings.retry.max_attempts,
            "delays": [_duration(delay) for delay in settings.retry.delays_ms],
        },
        "messageTTL": _duration(settings.message_ttl_ms) if settings.message_ttl_ms else None,
        "maxLengthBytes": settings.max_length_bytes,
        "maxPriority": settings.max_priority,
    }
    entry: Document = {
        "name": str(queue.id),
        "kind": "queue.queue",
        "driver": str(_driver_id(broker.namespace, broker.name)),
        "queue_name": settings.queue_name,
        "codec": settings.codec,
        "lunaq": {key: value for key, value in lunaq.items() if value is not None},
    }
    if queue.dead_letter is not None:
        entry["dead_letter"] = {"queue": str(Id(queue.namespace, queue.dead_letter.queue_ref.name))}
    if settings.max_length is not None:
        options = {"max_length": settings.max_length}
        entry["driver_options"] = {"amqp": options, "memory": options}
    return entry


def _library_id(name: str, consumer: Consumer) -> Id:
    return Id(consumer.namespace, name)


def _library(name: str, source: str, consumer: Consumer) -> Document:
    return {
        "name": str(_library_id(name, consumer)),
        "kind": "library.lua",
        "source": _lua(source, f"library {name}"),
    }


def _consumer(consumer: Consumer, code: Code) -> Document:
    handler = consumer.handler
    entry: Document = {
        "name": str(consumer.id),
        "kind": "queue.consumer",
        "queue": str(Id(consumer.queue_ref.namespace, consumer.queue_ref.name)),
        "source": _lua(code.source, "handler"),
        "method": handler.method,
        "imports": {name: str(_library_id(name, consumer)) for name in sorted(code.libraries)},
        "concurrency": consumer.concurrency,
        "prefetch": consumer.prefetch,
        "lunaq": {
            "env": {variable.name: variable.value for variable in handler.env if variable.value_from is None},
            "envFrom": [variable.name for variable in handler.env if variable.value_from is not None],
            "timeout": _duration(handler.timeout),
            "memoryLimit": handler.memory_limit,
            "drainTimeout": _duration(consumer.drain_timeout),
        },
    }
    if handler.modules is not None:
        entry["modules"] = list(handler.modules)
    if ranges := handler.http_client.private_ranges:
        entry["lunaq"]["httpClient"] = {"privateRanges": list(ranges)}
    return entry


def _lua(source: str, what: str) -> str:
    """Refuse what an entries document would take for the name of a file in the pod."""
    if source.startswith(_FILE):
        raise SpecError("spec.handler", f"the {what} is not Lua: it begins with {_FILE}")
    return source


def _duration(milliseconds: int) -> str:
    return durations.format_duration(milliseconds * durations.MILLISECOND)
