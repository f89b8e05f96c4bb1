"""Status conditions: the one list of reasons, and the one way to change a condition; used by reconcilers.

`Ready` says whether the object does its work. `Stalled` is True for what only a user can mend, because
kstatus (Flux, `kubectl wait`, Argo CD) reads a bare `Ready=False` as still in progress (design.md section 2).
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from lunaq_operator import explain, rbac

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

READY = "Ready"
STALLED = "Stalled"
PROGRESSING = "Progressing"

TRUE = "True"
FALSE = "False"
UNKNOWN = "Unknown"


class Reason(StrEnum):
    """Why a condition is as it is; the comment beside each says what it means and who acts."""

    # Well, or on the way; nobody has to act.
    AVAILABLE = "Available"  # the object does what its spec says
    PROGRESSING = "Progressing"  # pods are being replaced or are not ready yet
    SUSPENDED = "Suspended"  # `suspend: true`: nothing is consumed, everything else is kept
    SCALED_TO_ZERO = "ScaledToZero"  # no replicas are wanted right now
    DELETING = "Deleting"  # a deletion timestamp is set, clean-up is under way

    # Something else has to come first; it is tried again without a change of the spec.
    BROKER_UNREACHABLE = "BrokerUnreachable"  # no connection, or it was refused
    MANAGEMENT_UNREACHABLE = "ManagementUnreachable"  # the management API, where users are made, says nothing
    BROKER_NOT_READY = "BrokerNotReady"  # the Broker it refers to is not Ready
    QUEUE_NOT_READY = "QueueNotReady"  # the Queue it refers to is not Ready
    PODS_FAILING = "PodsFailing"  # pods exist and do not become ready
    FAILED = "Failed"  # an unexpected error of the operator; its log has the traceback

    # Only a user can mend it.
    INVALID_SPEC = "InvalidSpec"  # a field's value cannot be, and the schema could not see it
    CONFLICT = "Conflict"  # an older Queue claims the same broker-side name
    IMMUTABLE_ARGUMENTS = "ImmutableArguments"  # the broker has it with other arguments
    NOT_AUTHORIZED = "NotAuthorized"  # RBAC does not let the ServiceAccount consume
    NAME_CONFLICT = "NameConflict"  # an object of a name we need exists and is not ours
    BROKER_MISSING = "BrokerMissing"  # there is no Broker of that name
    QUEUE_MISSING = "QueueMissing"  # there is no Queue of that name
    NOT_ALLOWED = "NotAllowed"  # the Broker does not admit this namespace
    SECRET_MISSING = "SecretMissing"  # noqa: S105 - the Secret or one of its keys does not exist
    SECRET_NOT_LABELLED = "SecretNotLabelled"  # noqa: S105 - it lacks the label of its Broker
    ACCESS_REFUSED = "AccessRefused"  # the broker refused the credentials, or a right it needs
    POLICY_TOO_LARGE = "PolicyTooLarge"  # more names than a broker's permission can hold
    HANDLER_MISSING = "HandlerMissing"  # the ConfigMap of the handler or a library, or its key
    HANDLER_DOES_NOT_COMPILE = "HandlerDoesNotCompile"  # the message names chunk and line
    QUEUE_NOT_EMPTY = "QueueNotEmpty"  # `Delete` refuses a queue that holds messages


STALLING = frozenset(
    {
        Reason.INVALID_SPEC,
        Reason.CONFLICT,
        Reason.IMMUTABLE_ARGUMENTS,
        Reason.NOT_AUTHORIZED,
        Reason.NAME_CONFLICT,
        Reason.BROKER_MISSING,
        Reason.QUEUE_MISSING,
        Reason.NOT_ALLOWED,
        Reason.SECRET_MISSING,
        Reason.SECRET_NOT_LABELLED,
        Reason.ACCESS_REFUSED,
        Reason.POLICY_TOO_LARGE,
        Reason.HANDLER_MISSING,
        Reason.HANDLER_DOES_NOT_COMPILE,
        Reason.QUEUE_NOT_EMPTY,
    }
)
"""The reasons that no waiting mends."""

Condition = dict[str, Any]

_MAX_MESSAGE = 32768


def set_condition(
    conditions: Iterable[Mapping[str, Any]],
    type_: str,
    status: str,
    reason: str,
    message: str,
    generation: int,
    now: str,
) -> list[Condition]:
    """Return the conditions with this one set; equal to the old ones where nothing changed.

    `now` is RFC 3339 in UTC, to the second; it is used only where `status` differs from before. The list
    keeps its order, a new type goes to the end.
    """
    text = message if len(message) <= _MAX_MESSAGE else message[: _MAX_MESSAGE - 1] + "…"
    new: Condition = {
        "type": type_,
        "status": status,
        "observedGeneration": generation,
        "lastTransitionTime": now,
        "reason": str(reason),
        "message": text,
    }
    result = [dict(condition) for condition in conditions]
    for at, old in enumerate(result):
        if old.get("type") == type_:
            if old.get("status") == status:
                new["lastTransitionTime"] = old.get("lastTransitionTime", now)
            result[at] = new
            return result
    return [*result, new]


def set_ready(
    conditions: Iterable[Mapping[str, Any]],
    status: str,
    reason: str,
    message: str,
    generation: int,
    now: str,
) -> list[Condition]:
    """Set `Ready`, and `Stalled` as it follows from the reason; arguments as in `set_condition`."""
    stalled = status != TRUE and reason in STALLING
    result = set_condition(conditions, READY, status, reason, message, generation, now)
    return set_condition(
        result,
        STALLED,
        TRUE if stalled else FALSE,
        reason if stalled else Reason.AVAILABLE if status == TRUE else Reason.PROGRESSING,
        message if stalled else "",
        generation,
        now,
    )


def find(conditions: Iterable[Mapping[str, Any]], type_: str) -> Mapping[str, Any] | None:
    """Return the condition of that type, if there is one."""
    return next((condition for condition in conditions if condition.get("type") == type_), None)


def not_authorized(*, namespace: str, service_account: str, queue_namespace: str, queue: str) -> str:
    """Write the message of `NotAuthorized` for consuming, with the command that grants it."""
    account = explain.Account(namespace, service_account)
    command = explain.grant_queue(account, rbac.CONSUME, queue_namespace, queue)
    return (
        f"ServiceAccount {namespace}/{service_account} may not consume from {queue_namespace}:{queue}; "
        f"grant it with: {command}"
    )
