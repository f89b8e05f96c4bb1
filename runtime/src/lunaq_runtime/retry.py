"""What becomes of a delivery: pure decisions, made from the message, the outcome and the queue's settings.

The worker asks `triage` before a run and `decide` after it; `settle` carries the plan out. The rules are
design.md section 4; nothing here knows a clock, a broker or Lua.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Literal

from lunaq_runtime.ids import retry_exchange_name
from lunaq_runtime.message import Outgoing
from lunaq_runtime.topology import DEAD_KEY, delay_key

if TYPE_CHECKING:
    from lunaq_runtime.entries.model import Queue
    from lunaq_runtime.message import Delivery, Properties

ATTEMPTS = "attempts"
"""Header: finished runs so far."""
SUSPECT = "x_suspect"
"""Header: this message was in flight when processes died, and runs alone until one run of it ends."""
EXPIRATION = "x_expiration"
"""Header: the message's own `expiration`, which must not act on a retry or dead letter queue."""
ORIGINAL_QUEUE = "x_original_queue"
REASON = "x_dead_letter_reason"
TIME = "x_dead_letter_time"
ERROR = "x_error"
ERROR_KIND = "x_error_kind"

SUSPECT_AFTER = 3
"""Returns (`x-delivery-count`) beyond which a message is suspected of killing its process."""

MAX_ERROR_TEXT = 1000
"""Characters of an error kept in a header: a frame of headers is limited, an error text is not."""

MAX_ERROR_KIND = 100

_MAX_COUNT = 2**31 - 2

MAX_ATTEMPTS = "max_attempts"
DECODE_ERROR = "decode_error"
TOO_LARGE = "too_large"
TIMEOUT = "timeout"

_BROKER_HEADERS = frozenset({"x-death", "x-delivery-count", "x-acquired-count", "cc", "bcc"})
_BROKER_PREFIXES = ("x-first-death-", "x-last-death-")


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The handler is done with the message, or acked it."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A run ended in a failure: raised, `nil, err`, `false`, `msg:nack()`, out of time or memory."""

    text: str
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Poison:
    """No run can ever help: dead at once, with this reason."""

    reason: str
    text: str
    kind: str = "Invalid"


@dataclass(frozen=True, slots=True)
class HandedBack:
    """Not finished and nobody's fault (shutdown, a right withdrawn): no attempt is counted."""


Outcome = Succeeded | Failed | Poison | HandedBack


@dataclass(frozen=True, slots=True)
class Ack:
    """Ack, nothing else."""


@dataclass(frozen=True, slots=True)
class Requeue:
    """`nack requeue=true`, after so many seconds."""

    pause: float = 0.0


@dataclass(frozen=True, slots=True)
class Republish:
    """Publish `message` with confirm, and only then ack the delivery; `step` is for logs and counters."""

    message: Outgoing
    step: Literal["retry", "dead", "suspect"]


Plan = Ack | Requeue | Republish


class Start(Enum):
    """How a delivery may run: beside others, or with nothing else unacknowledged."""

    SHARED = auto()
    ALONE = auto()


def attempts_of(properties: Properties) -> int:
    """Read the count of finished runs; whatever a foreign publisher wrote there instead counts as 0."""
    return _count(properties, ATTEMPTS)


def is_suspect(properties: Properties) -> bool:
    """Tell whether the message must run alone."""
    return properties.headers.get(SUSPECT) is True


def original_expiration(properties: Properties) -> str | None:
    """Tell the `expiration` the publisher set, also on a message that came back from a retry queue."""
    kept = properties.headers.get(EXPIRATION)
    return properties.expiration or (kept if isinstance(kept, str) else None)


def triage(delivery: Delivery, queue: Queue, now: float) -> Start | Republish:
    """Decide before a run whether the message is one that kills its process (design.md section 4).

    Only quorum queues count returns, so on a classic queue every message is innocent. On an observed
    queue there is no retry exchange to send a suspect through.
    """
    if delivery.bare or queue.observe:
        return Start.SHARED
    if is_suspect(delivery.properties):
        if delivery.redelivered:
            text = "the process ended, or lost its connection, while this message ran alone"
            return _failure(delivery, Failed(text, "Crashed"), queue, now, keep_suspect=True)
        return Start.ALONE
    if _count(delivery.properties, "x-delivery-count") > SUSPECT_AFTER:
        return suspect(delivery, queue)
    return Start.SHARED


def suspect(delivery: Delivery, queue: Queue) -> Republish:
    """Plan a fresh start as a suspect, without counting an attempt: broker counts and flags begin anew."""
    headers = {SUSPECT: True, ATTEMPTS: attempts_of(delivery.properties)}
    return _republish(delivery, queue, delay_key(queue.retry.delays_ms[0]), headers, "suspect")


def decide(delivery: Delivery, outcome: Outcome, queue: Queue, now: float) -> Plan:
    """Decide how to settle; `now` is in Unix seconds."""
    match outcome:
        case Succeeded():
            return Ack()
        case HandedBack():
            # Requeued, a suspect would come back `redelivered`, and be counted as a killer.
            if is_suspect(delivery.properties) and not queue.observe:
                return suspect(delivery, queue)
            return Requeue()
        case Failed() | Poison() if queue.observe:
            return Requeue(pause=_delay_ms(queue, _count(delivery.properties, "x-delivery-count")) / 1000)
        case Failed():
            return _failure(delivery, outcome, queue, now)
        case Poison():
            return _dead(delivery, outcome, queue, attempts_of(delivery.properties), now)


def _failure(
    delivery: Delivery, failed: Failed, queue: Queue, now: float, *, keep_suspect: bool = False
) -> Republish:
    finished = attempts_of(delivery.properties) + 1
    if finished >= queue.retry.max_attempts:
        return _dead(delivery, Poison(MAX_ATTEMPTS, failed.text, failed.kind), queue, finished, now)
    headers: dict[str, Any] = {ATTEMPTS: finished}
    if keep_suspect:
        headers[SUSPECT] = True
    return _republish(delivery, queue, delay_key(_delay_ms(queue, finished - 1)), headers, "retry")


def _dead(delivery: Delivery, poison: Poison, queue: Queue, attempts: int, now: float) -> Republish:
    headers = {
        ATTEMPTS: attempts,
        ORIGINAL_QUEUE: str(queue.id),
        REASON: poison.reason,
        TIME: int(now),
        ERROR: _text(poison.text, MAX_ERROR_TEXT),
        ERROR_KIND: _text(poison.kind, MAX_ERROR_KIND),
    }
    return _republish(delivery, queue, DEAD_KEY, headers, "dead")


def _republish(
    delivery: Delivery,
    queue: Queue,
    routing_key: str,
    bookkeeping: dict[str, Any],
    step: Literal["retry", "dead", "suspect"],
) -> Republish:
    """Copy the message; our own bookkeeping is written anew, what the broker wrote is dropped.

    `expiration` moves into a header: the broker takes the lower of it and a retry queue's delay, and on a
    dead letter queue it would destroy the message. `user_id` moves too: a broker refuses one that is not
    the connection's own, and closes the channel.
    """
    properties = delivery.properties
    headers = {
        key: value
        for key, value in properties.headers.items()
        if not _is_brokers(key) and key not in (ATTEMPTS, SUSPECT)
    }
    if properties.expiration:
        headers[EXPIRATION] = properties.expiration
    if properties.user_id:
        headers["x_user_id"] = properties.user_id
    headers |= bookkeeping
    copy = replace(properties, headers=headers, expiration=None, user_id=None)
    message = Outgoing(retry_exchange_name(queue.queue_name), routing_key, delivery.body, copy)
    return Republish(message, step)


def _delay_ms(queue: Queue, failures_before: int) -> int:
    delays = queue.retry.delays_ms
    return delays[min(failures_before, len(delays) - 1)]


def _is_brokers(key: str) -> bool:
    lower = key.lower()
    return lower in _BROKER_HEADERS or lower.startswith(_BROKER_PREFIXES)


def _count(properties: Properties, header: str) -> int:
    value = properties.headers.get(header)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return 0
    # One more of it must still be a number that a header can hold, whoever wrote it.
    return min(value, _MAX_COUNT)


def _text(text: str, limit: int) -> str:
    clean = text.encode("utf-8", "replace").decode("utf-8")
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
