"""Metrics say what the workers' counters say, under the names dashboards look for."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from lunaq_runtime.metrics import Metrics
from lunaq_runtime.worker.counters import Counters

LABELS = {"queue": "app:emails", "consumer": "app:worker"}


class Shown:
    """What a scrape shows, by name and labels."""

    def __init__(self, counters: Counters | None, *, reconnects: int = 0, ready: bool = True) -> None:
        rows = [] if counters is None else [(LABELS["queue"], LABELS["consumer"], counters)]
        metrics = Metrics(lambda: rows, reconnects=lambda: reconnects, ready=lambda: ready)
        families = text_string_to_metric_families(metrics.render().decode())
        self.samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    def of(self, name: str, **more: str) -> float:
        return self.samples[name, frozenset({**LABELS, **more}.items())]


def test_every_counter_shows_under_its_name() -> None:
    counters = Counters(
        failed=2, acked=3, retried=4, dead=5, lost=6, delivered=7, redelivered=2, running=1, lua_memory=11
    )
    for _ in range(8):
        counters.publish()
    counters.publish("unroutable")
    counters.denials.add("queue.publish", "")
    counters.denials.add("queue.publish.queue", "app:audit")
    counters.denials.add("queue.publish.queue", "app:audit")
    shown = Shown(counters, reconnects=9)
    assert shown.of("lunaq_deliveries_total") == 7
    assert shown.of("lunaq_redeliveries_total") == 2
    assert shown.of("lunaq_handler_failures_total") == 2
    denied = "lunaq_permission_denied_total"
    assert shown.of(denied, action="queue.publish", resource="") == 1
    assert shown.of(denied, action="queue.publish.queue", resource="app:audit") == 2
    settled = {"ack": 3, "retry": 4, "dead": 5, "suspect": 0, "requeue": 0, "lost": 6}
    assert {outcome: shown.of("lunaq_settled_total", outcome=outcome) for outcome in settled} == settled
    assert shown.of("lunaq_publishes_total", outcome="ok") == 8
    assert shown.of("lunaq_publishes_total", outcome="unroutable") == 1
    assert shown.of("lunaq_in_flight") == 1
    assert shown.of("lunaq_lua_memory_bytes") == 11
    assert shown.samples["lunaq_reconnects_total", frozenset()] == 9


def test_runs_fall_into_cumulative_buckets() -> None:
    counters = Counters()
    for seconds in (0.001, 0.25, 0.25, 100.0):
        counters.ran([(1, seconds)])
    shown = Shown(counters)
    counted = {"0.001": 1, "0.1": 1, "0.25": 3, "60.0": 3, "+Inf": 4}
    assert {bound: shown.of("lunaq_handler_seconds_bucket", le=bound) for bound in counted} == counted
    assert shown.of("lunaq_handler_seconds_count") == 4
    assert shown.of("lunaq_handler_seconds_sum") == 100.501


def test_without_consumers_there_is_still_something_to_scrape() -> None:
    shown = Shown(None, ready=False).samples
    ours = {key: value for key, value in shown.items() if key[0].startswith("lunaq_")}
    assert ours == {("lunaq_reconnects_total", frozenset()): 0, ("lunaq_ready", frozenset()): 0}
    assert shown["process_resident_memory_bytes", frozenset()] > 0


def test_each_registry_is_its_own() -> None:
    assert Shown(None).samples.keys() == Shown(None).samples.keys()


def test_every_metric_is_told_in_the_docs_and_none_that_is_not_there() -> None:
    page = (Path(__file__).parents[2] / "docs" / "observability.md").read_text()
    told = set(re.findall(r"^\| `(lunaq_\w+)", page, re.MULTILINE))
    suffixes = re.compile("_(bucket|count|sum|created)$")
    counters = Counters()
    counters.denials.add("queue.publish", "")
    shown = {suffixes.sub("", name) for name, _ in Shown(counters).samples if name.startswith("lunaq_")}
    assert told == shown | {"lunaq_publishes_total"}
