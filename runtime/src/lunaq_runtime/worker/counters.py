"""What a consumer has done, for the local mode, the log and the metrics."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from lunaq_runtime.worker.denials import Denials

SECONDS_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the buckets in which handler runs are counted by their length."""


@dataclass(slots=True)
class Counters:
    """Counts since the start of the process.

    `handled` are finished runs and `failed` those of them that failed, with bodies that did not decode.
    `acked`, `retried`, `dead`, `suspected` and `requeued` are settlements; `lost` are deliveries whose
    connection went before they were settled, which the broker delivers again. `publish_failed` counts
    refused attempts to re-publish. `delivered` are deliveries taken up, `redelivered` those of them
    that the broker had delivered before, `running` those at work now, `lua_memory` the bytes of Lua states.
    `published` and `publish_refused` (by reason) are the handler's own publishes, `denials` what its policy
    refused. `seconds` and `buckets` (beside `SECONDS_BOUNDS`, the last one beyond them) measure runs.
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
    delivered: int = 0
    redelivered: int = 0
    running: int = 0
    lua_memory: int = 0
    published: int = 0
    publish_refused: dict[str, int] = field(default_factory=dict)
    denials: Denials = field(default_factory=Denials)
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(SECONDS_BOUNDS) + 1))

    def report(self, event: str) -> None:
        """Count one event of `settle`."""
        name = _FIELDS[event]
        setattr(self, name, getattr(self, name) + 1)

    def ran(self, runs: list[tuple[int, float]]) -> None:
        """Measure runs of the handler: how many took how many seconds each."""
        buckets = self.buckets
        for times, seconds in runs:
            self.seconds += times * seconds
            buckets[bisect_left(SECONDS_BOUNDS, seconds)] += times

    def publish(self, refused: str = "") -> None:
        """Count one publish of the handler; `refused` is the reason if it failed."""
        if refused:
            self.publish_refused[refused] = self.publish_refused.get(refused, 0) + 1
        else:
            self.published += 1


_FIELDS = {
    "acked": "acked",
    "retry": "retried",
    "dead": "dead",
    "suspect": "suspected",
    "requeued": "requeued",
    "lost": "lost",
    "publish_failed": "publish_failed",
}
