"""What a process has done, in the Prometheus text format; `health` serves it, `main` wires it.

Nothing is counted here: at each scrape the workers' own counters are read, so that the hot path pays for a
plain addition and no lock.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from lunaq_runtime.lua.modules.metrics import COUNTER, GAUGE, HISTOGRAM
from lunaq_runtime.worker.counters import SECONDS_BOUNDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client import Metric

    from lunaq_runtime.lua.modules.metrics import Family, HandlerMetrics
    from lunaq_runtime.worker.counters import Counters

OUTCOMES = {
    "ack": "acked",
    "retry": "retried",
    "dead": "dead",
    "suspect": "suspected",
    "requeue": "requeued",
    "lost": "lost",
}
"""Settlement outcome to its field of `Counters`."""

_HANDLER_FAMILIES: dict[str, Any] = {
    COUNTER: CounterMetricFamily,
    GAUGE: GaugeMetricFamily,
    HISTOGRAM: HistogramMetricFamily,
}
_LABELS = ("queue", "consumer")
_Row = tuple[tuple[str, str], "Counters"]


class Metrics:
    """A registry of its own.

    `counters` yields (queue ID, consumer ID, counters) of each consumer; `reconnects` counts the broker
    connections that came back; `ready` is what `/readyz` says; `handlers` is what handlers count themselves.
    """

    def __init__(
        self,
        counters: Callable[[], Iterable[tuple[str, str, Counters]]],
        *,
        reconnects: Callable[[], int],
        ready: Callable[[], bool],
        handlers: HandlerMetrics | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        self._counters = counters
        self._reconnects = reconnects
        self._ready = ready
        self._handlers = handlers
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def render(self) -> bytes:
        """Write all of it in the text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Read the counters; the registry calls it at each scrape."""
        rows: list[_Row] = [((queue, consumer), one) for queue, consumer, one in self._counters()]
        yield _counter(
            "lunaq_deliveries", "Deliveries taken up.", ((labels, one.delivered) for labels, one in rows)
        )
        yield _counter(
            "lunaq_redeliveries",
            "Deliveries taken up that the broker had delivered before.",
            ((labels, one.redelivered) for labels, one in rows),
        )
        yield _counter(
            "lunaq_handler_failures",
            "Runs that failed, and bodies that did not decode.",
            ((labels, one.failed) for labels, one in rows),
        )
        yield _denied(rows)
        yield _by_outcome("lunaq_settled", "Deliveries settled, by outcome.", _settled(rows))
        yield _by_outcome("lunaq_publishes", "Publishes of handlers, by outcome.", _published(rows))
        yield _seconds(rows)
        in_flight = GaugeMetricFamily("lunaq_in_flight", "Handlers running now.", labels=_LABELS)
        for labels, one in rows:
            in_flight.add_metric(labels, one.running)
        yield in_flight
        memory = GaugeMetricFamily("lunaq_lua_memory_bytes", "Memory of the Lua states.", labels=_LABELS)
        for labels, one in rows:
            memory.add_metric(labels, one.lua_memory)
        yield memory
        yield CounterMetricFamily(
            "lunaq_reconnects", "Broker connections that came back.", value=self._reconnects()
        )
        yield GaugeMetricFamily("lunaq_ready", "What /readyz says: 1 or 0.", value=int(self._ready()))
        for family in self._handlers.families() if self._handlers else ():
            yield _of_handlers(family)


def _of_handlers(family: Family) -> Metric:
    """Render what a handler counts; series of one name may have different labels."""
    text = "Counted by a handler."
    whole: Metric = _HANDLER_FAMILIES[family.kind](family.name, text)
    for labels, one in family.series.items():
        names, values = [name for name, _ in labels], [value for _, value in labels]
        if family.kind == HISTOGRAM:
            histogram = HistogramMetricFamily(family.name, text, labels=names)
            histogram.add_metric(values, one.cumulated(), sum_value=one.value)
            whole.samples += histogram.samples
        else:
            plain = _HANDLER_FAMILIES[family.kind](family.name, text, labels=names)
            plain.add_metric(values, one.value)
            whole.samples += plain.samples
    return whole


def _counter(name: str, text: str, values: Iterable[tuple[tuple[str, str], int]]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=_LABELS)
    for labels, value in values:
        family.add_metric(labels, value)
    return family


def _denied(rows: list[_Row]) -> CounterMetricFamily:
    """Give what was refused; the operator reads this, too, and makes an Event of it."""
    family = CounterMetricFamily(
        "lunaq_permission_denied",
        "Checks that the policy refused; `resource` is a queue ID, bounded in number.",
        labels=(*_LABELS, "action", "resource"),
    )
    for labels, one in rows:
        for what, count in one.denials.counts().items():
            family.add_metric((*labels, *what), count)
    return family


def _by_outcome(
    name: str, text: str, values: Iterable[tuple[tuple[str, str], str, int]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=(*_LABELS, "outcome"))
    for labels, outcome, value in values:
        family.add_metric((*labels, outcome), value)
    return family


def _settled(rows: list[_Row]) -> Iterator[tuple[tuple[str, str], str, int]]:
    for labels, one in rows:
        for outcome, field in OUTCOMES.items():
            yield labels, outcome, getattr(one, field)


def _published(rows: list[_Row]) -> Iterator[tuple[tuple[str, str], str, int]]:
    for labels, one in rows:
        yield labels, "ok", one.published
        for reason, count in list(one.publish_refused.items()):
            yield labels, reason, count


def _seconds(rows: list[_Row]) -> HistogramMetricFamily:
    family = HistogramMetricFamily("lunaq_handler_seconds", "Length of handler runs.", labels=_LABELS)
    bounds = [*(str(bound) for bound in SECONDS_BOUNDS), "+Inf"]
    for labels, one in rows:
        family.add_metric(
            labels, list(zip(bounds, accumulate(one.buckets), strict=True)), sum_value=one.seconds
        )
    return family
