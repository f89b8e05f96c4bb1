"""The Queue resource: a queue on a Broker, with its retries and its dead letters."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lunaq_operator import names
from lunaq_operator.resources.fields import Fields, SpecError, duration_ms
from lunaq_operator.resources.meta import LocalRef, Ref, Resource, read_local_ref, read_meta, read_ref
from lunaq_runtime.ids import Id

if TYPE_CHECKING:
    from collections.abc import Mapping

_QUEUE_NAME = re.compile(r"(?!amq\.)[^:\x00-\x1f\x7f]+\Z")
_LONGEST_NAME = 200
_MAX_DELAYS = 5


@dataclass(frozen=True, slots=True)
class Retry:
    """When a failed delivery comes back; `delays` in milliseconds, the last one repeating."""

    max_attempts: int = 5
    delays: tuple[int, ...] = (1_000, 10_000, 60_000)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Where dead letters go, if not to the queue's own dead letter queue."""

    queue_ref: LocalRef


@dataclass(frozen=True, slots=True)
class Queue(Resource):
    """A Queue as its spec means it; times in milliseconds, lengths in messages or bytes.

    `queue_name` is empty where the broker-side name is the queue ID.
    """

    broker_ref: Ref
    queue_name: str = ""
    type: str = "Quorum"
    codec: str = "json"
    message_ttl: int | None = None
    max_length: int | None = None
    max_length_bytes: int | None = None
    single_active_consumer: bool = False
    max_priority: int | None = None
    retry: Retry = field(default_factory=Retry)
    dead_letter: DeadLetter | None = None
    management_policy: str = "Full"
    deletion_policy: str = "Retain"

    @property
    def id(self) -> Id:
        """The queue ID, `<namespace>:<name>`."""
        return Id(self.namespace, self.name)

    @property
    def broker_side_name(self) -> str:
        """What the queue is called on the broker."""
        return self.queue_name or str(self.id)

    @property
    def observed(self) -> bool:
        """Whether it is somebody else's queue, which we only consume from."""
        return self.management_policy == "Observe"


def parse_queue(obj: Mapping[str, Any], *, strict: bool = False) -> Queue:
    """Read a Queue; SpecError names the field. `strict` refuses fields that the schema lacks."""
    meta = read_meta(obj, names.QUEUE, label_name=True)
    spec = Fields(obj.get("spec"), "spec")
    queue = Queue(
        meta=meta,
        broker_ref=spec.required("brokerRef", lambda ref: read_ref(ref, meta.namespace)),
        queue_name=_read_queue_name(spec),
        type=spec.choice("type", ("Quorum", "Classic"), "Quorum"),
        codec=spec.choice("codec", ("json", "msgpack", "raw"), "json"),
        message_ttl=spec.optional_duration("messageTTL"),
        max_length=spec.optional_integer("maxLength", least=1, most=2**53 - 1),
        max_length_bytes=spec.optional_integer("maxLengthBytes", least=1, most=2**53 - 1),
        single_active_consumer=spec.flag("singleActiveConsumer", default=False),
        max_priority=spec.optional_integer("maxPriority", least=1, most=255),
        retry=spec.child("retry", _read_retry) or Retry(),
        dead_letter=spec.child("deadLetter", _read_dead_letter),
        management_policy=spec.choice("managementPolicy", ("Full", "Observe"), "Full"),
        deletion_policy=spec.choice("deletionPolicy", ("Retain", "Delete"), "Retain"),
    )
    _check(queue)
    if strict:
        for path in spec.unknown():
            raise SpecError(path, "is not a field of Queue")
    return queue


def _read_queue_name(spec: Fields) -> str:
    says = "a name without a colon, control characters and the broker's own prefix amq."
    value = spec.text("queueName", "", pattern=_QUEUE_NAME, says=says)
    if len(value.encode()) > _LONGEST_NAME:
        raise SpecError(spec.at("queueName"), f"is longer than {_LONGEST_NAME} bytes in UTF-8")
    return value


def _read_retry(fields: Fields) -> Retry:
    delays = tuple(
        duration_ms(text, f"{fields.at('delays')}[{at}]")
        for at, text in enumerate(fields.texts("delays", most=_MAX_DELAYS))
    )
    if fields.has("delays") and not delays:
        raise SpecError(fields.at("delays"), "needs at least one delay")
    return Retry(fields.integer("maxAttempts", 5, least=1, most=1000), delays or Retry().delays)


def _read_dead_letter(fields: Fields) -> DeadLetter:
    return DeadLetter(fields.required("queueRef", read_local_ref))


def _check(queue: Queue) -> None:
    """Apply the rules over several fields, which CEL checks in a cluster."""
    lengths: dict[str, object] = {
        "messageTTL": queue.message_ttl,
        "maxLength": queue.max_length,
        "maxLengthBytes": queue.max_length_bytes,
    }
    if queue.type == "Quorum" and queue.max_priority is not None:
        raise SpecError("spec.maxPriority", "works only with type Classic")
    if queue.type == "Classic":
        _refuse(lengths, "works only with type Quorum: a classic queue can lose what it dead-letters")
    if queue.observed:
        declared: dict[str, object] = {
            "singleActiveConsumer": queue.single_active_consumer or None,
            "maxPriority": queue.max_priority,
            "deadLetter": queue.dead_letter,
            "retry": None if queue.retry == Retry() else queue.retry,
            "deletionPolicy": None if queue.deletion_policy == "Retain" else queue.deletion_policy,
        }
        _refuse(lengths | declared, "cannot be set with managementPolicy Observe: nothing is declared then")
    if queue.dead_letter is not None and queue.dead_letter.queue_ref.name == queue.name:
        raise SpecError("spec.deadLetter.queueRef.name", "must name another Queue")


def _refuse(values: Mapping[str, object], reason: str) -> None:
    for name, value in values.items():
        if value is not None:
            raise SpecError(f"spec.{name}", reason)
