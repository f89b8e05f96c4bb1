"""What a consumer has done, for the local mode, the log and the metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Counts since the start of the process.

    `handled` are finished runs and `failed` those of them that failed, with bodies that did not decode.
    `acked`, `retried`, `dead`, `suspected` and `requeued` are settlements; `lost` are deliveries whose
    connection went before they were settled, which the broker delivers again. `publish_failed` counts
    refused attempts to re-publish.
    """

    handled: int = 0
    failed: int = 0
    acked: int = 0
    retried: int = 0
    dead: int = 0
    suspected: int = 0
    requeued: int = 0
    lost: int = 0
    publish_failed: int = 0

    def report(self, event: str) -> None:
        """Count one event of `settle`."""
        name = _FIELDS[event]
        setattr(self, name, getattr(self, name) + 1)


_FIELDS = {
    "acked": "acked",
    "retry": "retried",
    "dead": "dead",
    "suspect": "suspected",
    "requeued": "requeued",
    "lost": "lost",
    "publish_failed": "publish_failed",
}
