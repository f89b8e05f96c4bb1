"""Stores of an entries document (lua-api.md 3.8); called by `parse`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lunaq_runtime import durations
from lunaq_runtime.entries.model import Store

if TYPE_CHECKING:
    from lunaq_runtime.entries.parse_entry import Entry
    from lunaq_runtime.ids import Id


def build_stores(entries: list[Entry]) -> dict[Id, Store]:
    """Build all stores."""
    return {
        entry.id: Store(
            id=entry.id,
            max_size=entry.values["max_size"],
            max_bytes=entry.values["lunaq"]["maxBytes"],
            cleanup_interval=durations.to_seconds(entry.values["cleanup_interval"]),
        )
        for entry in entries
    }
