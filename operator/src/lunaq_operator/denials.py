"""What runtimes had to deny, read from what their pods export, and put in words for an Event. Pure.

Pods have no access to the API server, so they count (`lunaq_permission_denied_total`) and the operator
looks: `reconcile.denials` asks the pods, and everything they say is taken as coming from an attacker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from lunaq_operator import explain, names
from lunaq_runtime import policy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lunaq_operator.explain import Account

METRIC = "lunaq_permission_denied_total"

Right = tuple[str, str]
"""An action of `lunaq_runtime.policy`, and a queue ID; empty for the right to publish at all."""

_MOST = 50
_SHOWN = 3


def read(text: str) -> dict[Right, int]:
    """Read the counters of one pod; ValueError where it is no Prometheus text.

    Queues of impossible names are summed up under an empty one of the action `queue.publish.queue`.
    """
    found: dict[Right, int] = {}
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    for sample in samples:
        right = _right(sample.labels) if sample.name == METRIC else None
        if right is not None and (right in found or len(found) < _MOST):
            found[right] = found.get(right, 0) + int(sample.value)
    return found


def _right(labels: Mapping[str, str]) -> Right | None:
    action, resource = labels.get("action", ""), labels.get("resource", "")
    if action == policy.PUBLISH:
        return action, ""
    if action == policy.PUBLISH_TO:
        return action, resource if names.QUEUE_ID.match(resource) else ""
    return None


def new(before: Mapping[Right, int], now: Mapping[Right, int]) -> dict[Right, int]:
    """Return what came to one pod's counters since."""
    grown = {right: count - before.get(right, 0) for right, count in now.items()}
    return {right: count for right, count in grown.items() if count > 0}


def note(account: Account, consumer: str, rights: Iterable[Right]) -> str:
    """Write the Event's text; without figures, so that it stays the same while it goes on."""
    lacking = sorted(set(rights))
    words = [_words(right) for right in lacking]
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    text = (
        f"The handler asked for what ServiceAccount {account.namespace}/{account.name} may not: "
        f"{', '.join(words[:_SHOWN])}{more}."
    )
    command = next(filter(None, (_command(account, consumer, right) for right in lacking)), "")
    which = "it" if len(lacking) == 1 else "the first"
    return f"{text} Grant {which} with: {command}" if command else text


def _words(right: Right) -> str:
    action, queue = right
    if action == policy.PUBLISH:
        return "publish at all"
    return f"publish to {queue or 'a queue ID that cannot be'}"


def _command(account: Account, consumer: str, right: Right) -> str:
    action, queue = right
    if action == policy.PUBLISH:
        return explain.grant_publish(account, consumer)
    found = names.QUEUE_ID.match(queue)
    return explain.grant_queue(account, "publish", found[1], found[2]) if found else ""
