"""Policies from entries of `kind: security.policy` (design.md 5); called by `parse` and `policy_source`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lunaq_runtime.policy import OPEN_ACTIONS, Policy

if TYPE_CHECKING:
    from lunaq_runtime.entries.parse_entry import Entry
    from lunaq_runtime.ids import Id


def build_policies(entries: list[Entry]) -> dict[Id, Policy]:
    """Build the policy of each consumer; several entries for one consumer add up."""
    result: dict[Id, Policy] = {}
    for entry in entries:
        values = entry.values
        consumer: Id | None = values["consumer"]
        if consumer is None:
            continue
        for field in ("publishTo", "consume"):
            for pattern in values[field]:
                _check_pattern(entry, field, pattern)
        for rule in values["deny"]:
            action = rule.partition(" ")[0]
            if "*" not in action and action not in OPEN_ACTIONS:
                entry.place.error("deny", f"{action} is not one of {', '.join(sorted(OPEN_ACTIONS))}")
        before = result.get(consumer, Policy())
        result[consumer] = Policy(
            publish=before.publish or values["publish"],
            publish_to=tuple(sorted({*before.publish_to, *values["publishTo"]})),
            consume=tuple(sorted({*before.consume, *values["consume"]})),
            deny=tuple(sorted({*before.deny, *values["deny"]})),
        )
    return result


def _check_pattern(entry: Entry, field: str, pattern: str) -> None:
    parts = pattern.partition(":")[::2]
    if any("*" in part and part != "*" for part in parts):
        entry.place.warn(
            field, f"{pattern}: * stands for a whole name or namespace only, this matches no other"
        )
