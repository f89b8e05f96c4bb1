"""What a policy refused: counted and logged within bounds by the runtime, made one Event by the operator."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from lunaq_operator import denials, kinds, references
from lunaq_operator.explain import Account
from lunaq_operator.reconcile import denials as watching
from lunaq_operator.settings import Settings
from lunaq_operator.store import Key, Store
from lunaq_runtime.metrics import Metrics
from lunaq_runtime.policy import PUBLISH, PUBLISH_TO, Policy
from lunaq_runtime.worker.counters import Counters
from lunaq_runtime.worker.denials import MOST, OTHERS, Denials
from lunaq_runtime.worker.host import WorkerHost

AUDIT = (PUBLISH_TO, "app:audit")
WORKER = Key("app", "worker")


# --- the runtime


def test_the_log_has_one_line_a_minute_however_often_it_is_asked(caplog):
    now = [0.0]
    counters = Counters(denials=Denials(lambda: now[0]))
    host = WorkerHost(Policy, counters, "app:worker")
    with caplog.at_level(logging.WARNING):
        for _ in range(1_000):
            assert not host.can(*AUDIT)
        now[0] = 61.0
        assert not host.can(*AUDIT)
    assert [record.fields["times"] for record in caplog.records] == [1, 1_000]
    assert (
        "the policy of consumer app:worker denies its handler queue.publish.queue of app:audit" in caplog.text
    )
    assert counters.denials.counts() == {AUDIT: 1_001}


def test_a_handler_that_makes_up_names_does_not_fill_memory_or_log():
    found = Denials(lambda: 0.0)
    told = [found.add(PUBLISH_TO, f"app:q{number}") for number in range(500)]
    assert len(found.counts()) == MOST + 1
    assert found.counts()[PUBLISH_TO, OTHERS] == 500 - MOST
    assert sum(told) == MOST + 1
    found.add(PUBLISH_TO, "x" * 10_000)
    assert max(len(resource) for _, resource in found.counts()) <= 127


# --- reading it


def exported(counts: dict[tuple[str, str], int]) -> str:
    counters = Counters()
    for right, count in counts.items():
        for _ in range(count):
            counters.denials.add(*right)
    rows = [("app:emails", "app:worker", counters)]
    return Metrics(lambda: rows, reconnects=lambda: 0, ready=lambda: True).render().decode()


def test_what_a_runtime_exports_is_read():
    assert denials.read(exported({AUDIT: 3, (PUBLISH, ""): 2})) == {AUDIT: 3, (PUBLISH, ""): 2}


def test_what_a_pod_makes_up_cannot_get_into_an_event():
    text = exported(
        {
            (PUBLISH_TO, 'app:x"; kubectl delete ns app; echo "'): 1,
            (PUBLISH_TO, "a:b\n"): 1,
            ("evil", "a:b"): 1,
        }
    )
    assert denials.read(text) == {(PUBLISH_TO, ""): 2}
    with pytest.raises(ValueError, match="html"):
        denials.read("<html>")


def test_many_made_up_queues_are_read_within_bounds():
    lines = [f'{denials.METRIC}{{action="{PUBLISH_TO}",resource="app:q{n}"}} 1.0' for n in range(1_000)]
    assert len(denials.read("\n".join(lines) + "\n")) == 50


def test_the_note_names_what_is_lacking_and_how_to_grant_it():
    account = Account("app", "worker")
    text = denials.note(account, "worker", [AUDIT, (PUBLISH, "")])
    assert "ServiceAccount app/worker may not: publish at all, publish to app:audit." in text
    assert "Grant the first with: kubectl create role lunaq:publish:consumers:worker" in text
    many = denials.note(account, "worker", [(PUBLISH_TO, f"app:{'q' * 60}{n}") for n in range(9)])
    assert " and 6 more." in many
    assert len(many) < 1024
    assert "Grant" not in denials.note(account, "worker", [(PUBLISH_TO, "")])


# --- telling it


class Cluster:
    """Stands for the API server and the pods; keeps what was told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pods: dict[str, dict[tuple[str, str], int] | None] = {}
        self.told: list[tuple[str, int]] = []
        self.listed = 0
        self.now = lambda: None
        self.store = Store(kinds.watched(cluster_wide=True))
        references.add_indexes(self.store)
        for kind, extra in ((kinds.CONSUMERS, {}), (kinds.DEPLOYMENTS, {"status": {"replicas": 1}})):
            self.store[kind].put({"metadata": self._metadata("worker"), **extra})
        self.settings = Settings("image")
        self.kube = self.recorder = self

        async def ask(_: Any, address: str) -> dict[tuple[str, str], int] | None:
            return self.pods[address]

        monkeypatch.setattr(watching, "_ask", ask)

    def _metadata(self, name: str) -> dict[str, Any]:
        labels = {"lunaq.dev/consumer": "worker"}
        return {"name": name, "namespace": "app", "uid": f"uid-{name}", "labels": labels}

    async def list(self, _kind: Any, _namespace: str, selector: str) -> list[dict[str, Any]]:
        assert selector == "lunaq.dev/consumer"
        self.listed += 1
        return [
            {"metadata": self._metadata(name), "spec": {}, "status": {"phase": "Running", "podIP": name}}
            for name in self.pods
        ]

    async def event(self, _obj: Any, _type: str, reason: str, note: str, *, action: str, times: int) -> None:
        assert (reason, action) == ("PermissionDenied", "Publish")
        self.told.append((note, times))


async def looks(
    cluster: Cluster, *steps: dict[str, dict[tuple[str, str], int] | None]
) -> list[tuple[str, int]]:
    watch = watching.Watch(cluster)
    for pods in steps:
        cluster.pods = pods
        await watch.look(None)
    return cluster.told


async def test_denials_of_all_pods_become_one_event_with_their_number(monkeypatch):
    told = await looks(
        Cluster(monkeypatch),
        {"a": {}, "b": {AUDIT: 1}},
        {"a": {AUDIT: 4}, "b": {AUDIT: 3}},
        {"a": {AUDIT: 4}, "b": {AUDIT: 3}},
    )
    assert [times for _, times in told] == [6]


async def test_the_note_stays_while_it_goes_on_and_grows_with_what_is_new(monkeypatch):
    other = (PUBLISH_TO, "app:other")
    told = await looks(
        Cluster(monkeypatch),
        {},
        {"a": {AUDIT: 1}},
        {"a": {AUDIT: 9}},
        {"a": {AUDIT: 9, other: 1}},
        {"a": {AUDIT: 10, other: 1}},
    )
    assert [times for _, times in told] == [1, 8, 1, 1]
    notes = [note for note, _ in told]
    assert notes[0] == notes[1]
    assert notes[2] == notes[3] != notes[0]


async def test_what_was_counted_before_this_operator_began_is_not_told_again(monkeypatch):
    told = await looks(
        Cluster(monkeypatch), {"a": {AUDIT: 100}}, {"a": None}, {"a": {AUDIT: 100}}, {"a": {AUDIT: 101}}
    )
    assert [times for _, times in told] == [1]


async def test_without_pods_none_are_listed(monkeypatch):
    cluster = Cluster(monkeypatch)
    cluster.store[kinds.DEPLOYMENTS].remove(
        {"metadata": cluster._metadata("worker") | {"resourceVersion": "5"}}
    )
    await looks(cluster, {}, {})
    assert cluster.listed == 0
