"""The `metrics` module: what handlers count, for the pod's /metrics (lua-api.md 3.12).

Names and label sets are bounded: a label that holds message IDs must neither fill this process nor the
Prometheus that scrapes it. Called from several threads at once; `lunaq_runtime.metrics` renders `families`.
"""

from __future__ import annotations

import math
import re
import threading
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from lunaq_runtime.lua.errors import INTERNAL, HandlerError

if TYPE_CHECKING:
    from lunaq_runtime.lua.modules import Calls, Functions

MAX_NAMES = 200
MAX_SERIES = 2000
"""Names, and series (names with their label sets), of one process."""
MAX_LABELS = 10
MAX_NAME = 128
MAX_LABEL_VALUE = 128

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of a histogram's buckets, those Prometheus clients have by default."""

COUNTER = "counter"
GAUGE = "gauge"
HISTOGRAM = "histogram"

CONSUMER = "consumer"
_RESERVED_NAMES = ("lunaq_", "python_", "process_")
_RESERVED_LABELS = frozenset({CONSUMER, "le"})
_SUFFIXES = ("_total", "_created", "_bucket", "_count", "_sum")
_NOT_ALLOWED = re.compile(r"[^A-Za-z0-9_]")

Labels = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Series:
    """One label set's value: a number, and for a histogram its counts beside `BOUNDS` and their sum."""

    value: float = 0.0
    buckets: list[int] = field(default_factory=list)

    def observe(self, value: float) -> None:
        """Count one value."""
        if not self.buckets:
            self.buckets = [0] * (len(BOUNDS) + 1)
        self.buckets[bisect_left(BOUNDS, value)] += 1
        self.value += value

    def cumulated(self) -> list[tuple[str, int]]:
        """List the buckets as the text format has them: bound, and how many are not above it."""
        bounds = [*(str(bound) for bound in BOUNDS), "+Inf"]
        return list(zip(bounds, accumulate(self.buckets), strict=True))


@dataclass(slots=True)
class Family:
    """One name: its kind, and its series by label set."""

    name: str
    kind: str
    series: dict[Labels, Series] = field(default_factory=dict)


class HandlerMetrics:
    """All metrics of a process' handlers."""

    def __init__(self) -> None:
        self._families: dict[str, Family] = {}
        self._count = 0
        self._lock = threading.Lock()

    def families(self) -> list[Family]:
        """Copy everything, for a scrape."""
        with self._lock:
            return [
                Family(
                    family.name,
                    family.kind,
                    {labels: Series(one.value, list(one.buckets)) for labels, one in family.series.items()},
                )
                for family in self._families.values()
            ]

    def add(self, kind: str, name: str, amount: float, labels: Labels) -> None:
        """Add to a counter or gauge; HandlerError where a bound or a rule forbids it."""
        if kind == COUNTER and amount < 0:
            raise _refused(f"a counter only grows, so {amount:g} cannot be added: use a gauge")
        with self._lock:
            self._series(kind, name, labels).value += amount

    def put(self, name: str, value: float, labels: Labels) -> None:
        """Set a gauge."""
        with self._lock:
            self._series(GAUGE, name, labels).value = value

    def observe(self, name: str, value: float, labels: Labels) -> None:
        """Count a value in a histogram."""
        with self._lock:
            self._series(HISTOGRAM, name, labels).observe(value)

    def _series(self, kind: str, name: str, labels: Labels) -> Series:
        family = self._families.get(name)
        if family is None:
            if len(self._families) >= MAX_NAMES:
                raise _refused(f"{MAX_NAMES} names are in use already: use labels, or fewer names", "full")
            if self._count < MAX_SERIES:
                family = self._families[name] = Family(name, kind)
        if family is not None:
            if family.kind != kind:
                raise _refused(f"{name} is a {family.kind} already: give the {kind} another name")
            if found := family.series.get(labels):
                return found
        if family is None or self._count >= MAX_SERIES:
            text = f"{MAX_SERIES} label sets are in use already: leave out labels that differ by message"
            raise _refused(text, "full")
        self._count += 1
        created = family.series[labels] = Series()
        return created


def functions(calls: Calls, metrics: HandlerMetrics, consumer: str) -> Functions:
    """Name the callbacks of `prelude/metrics.lua`: name, value, then labels as tokens."""

    def change(kind: str) -> Any:
        def changed(name: bytes, amount: float, *tokens: Any) -> bool:
            metrics.add(
                kind, metric_name(name, kind), _number(amount), labels_of(calls.value(tokens), consumer)
            )
            return True

        return calls.answering(changed)

    def put(name: bytes, value: float, *tokens: Any) -> bool:
        metrics.put(metric_name(name, GAUGE), _number(value), labels_of(calls.value(tokens), consumer))
        return True

    def observe(name: bytes, value: float, *tokens: Any) -> bool:
        metrics.observe(
            metric_name(name, HISTOGRAM), _number(value), labels_of(calls.value(tokens), consumer)
        )
        return True

    return {
        "metrics_counter": change(COUNTER),
        "metrics_gauge": change(GAUGE),
        "metrics_set": calls.answering(put),
        "metrics_histogram": calls.answering(observe),
    }


def metric_name(name: bytes, kind: str) -> str:
    """Bring a name to what Prometheus takes: dots and the like become underscores."""
    text = _sanitised(name.decode(errors="replace"))
    if kind == COUNTER:
        text = text.removesuffix("_total")
    if not text.strip("_"):
        raise _refused("metric name required: letters, digits and underscores")
    if len(text) > MAX_NAME:
        raise _refused(f"the name has more than {MAX_NAME} characters")
    if kind != COUNTER and text.endswith(_SUFFIXES):
        raise _refused(f"{text}: names of counters and histograms end like that, a {kind}'s must not")
    if text.startswith(_RESERVED_NAMES):
        raise _refused(f"{text}: names that begin with {', '.join(_RESERVED_NAMES)} are the runtime's")
    return text


def labels_of(given: Any, consumer: str) -> Labels:
    """Collect labels: string keys and values only, others are left out; the consumer's ID is added."""
    labels = {CONSUMER: consumer}
    for key, value in given.items() if isinstance(given, dict) else ():
        if not isinstance(key, str) or not isinstance(value, str):
            continue
        name = _sanitised(key).lstrip("_") or "_"
        if name in _RESERVED_LABELS:
            raise _refused(f"the label {name} is the runtime's: give yours another name")
        if len(value) > MAX_LABEL_VALUE:
            raise _refused(f"the label {name} has a value of more than {MAX_LABEL_VALUE} characters")
        labels[name[:MAX_NAME]] = value
    if len(labels) > MAX_LABELS + 1:
        raise _refused(f"{len(labels) - 1} labels are more than {MAX_LABELS}")
    return tuple(sorted(labels.items()))


def _sanitised(text: str) -> str:
    text = _NOT_ALLOWED.sub("_", text)
    return f"_{text}" if text[:1].isdigit() else text


def _number(value: float) -> float:
    if not math.isfinite(value):
        raise _refused("the value must be a finite number")
    return float(value)


def _refused(text: str, reason: str = "invalid") -> HandlerError:
    return HandlerError(text, INTERNAL, retryable=False, details={"reason": reason})
