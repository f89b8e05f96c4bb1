"""The worker's parts, each alone: threads, requests, stuck handlers, apps that cannot run."""

from __future__ import annotations

import asyncio
import threading
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from harness.waiting import eventually
from harness.worker_stage import CONSUMER, Stage
from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.brokers.memory import MemoryBroker
from lunaq_runtime.entries.model import Queue, Retry
from lunaq_runtime.ids import Id
from lunaq_runtime.limits import MAX_BODY
from lunaq_runtime.lua.requests import Info, Publish
from lunaq_runtime.policy import DENY_ALL, Policy
from lunaq_runtime.topology import Binding, ExchangeDecl, QueueDecl, Topology
from lunaq_runtime.worker import Counters, Stepper
from lunaq_runtime.worker.host import WorkerHost
from lunaq_runtime.worker.message_ids import new_id
from lunaq_runtime.worker.requests import Requests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


BROKER = Id("app", "broker")
ONCE = Retry(max_attempts=1, delays_ms=(20,))


@pytest.fixture
async def stepper() -> AsyncIterator[Stepper]:
    """Threads that lose patience quickly."""
    stepper = Stepper(patience=0.01)
    yield stepper
    stepper.close()


async def test_calls_that_come_back_share_one_thread(stepper: Stepper):
    assert [await stepper.call(lambda n=n: n) for n in range(20)] == list(range(20))
    assert stepper.threads == 1


async def test_a_call_that_raises_raises_where_it_was_made(stepper: Stepper):
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await stepper.call(fail)
    assert await stepper.call(lambda: 1) == 1


async def test_calls_behind_stuck_ones_get_threads_and_the_late_ones_retire(stepper: Stepper):
    release = threading.Event()
    stuck = [stepper.call(release.wait) for _ in range(3)]
    assert await asyncio.wait_for(stepper.call(lambda: "through"), 20) == "through"
    release.set()
    await asyncio.gather(*stuck)

    async def one_left() -> bool:
        return stepper.threads == 1

    await eventually(one_left, "the late threads to retire")
    assert await stepper.call(lambda: "still here") == "still here"


async def test_a_thread_that_retired_takes_over_when_another_is_late():
    stepper = Stepper(patience=0.2)
    seen = set()

    def note(release: threading.Event) -> None:
        seen.add(threading.current_thread())
        release.wait(60)

    for _ in range(3):
        release = threading.Event()
        stuck = stepper.call(lambda release=release: note(release))
        await asyncio.wait_for(stepper.call(lambda: None), 20)
        release.set()
        await stuck

        async def one_left() -> bool:
            return stepper.threads == 1

        await eventually(one_left, "the late thread to retire")
    stepper.close()
    assert len(seen) == 2


async def test_the_handlers_time_runs_while_a_request_is_carried_out(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    async def never(_requests: Requests, _request: Any) -> tuple[Any, ...]:
        await asyncio.Event().wait()
        return ()

    monkeypatch.setattr(Requests, "execute", never)
    run = await stage.start("function handle(b) queue.info('app:gate') end", timeout=0.05, retry=ONCE)
    await stage.send()
    headers = (await stage.dead())[0].properties.headers
    assert (headers["x_error_kind"], headers["attempts"]) == ("Timeout", 1)
    assert run.counters.failed == 1


def requests(broker: MemoryBroker, **queues: Queue) -> tuple[Requests, Counters]:
    counters = Counters()
    listed = {queue.id: queue for queue in queues.values()}
    return Requests(broker, BROKER, listed, counters), counters


@pytest.fixture
async def broker() -> AsyncIterator[MemoryBroker]:
    """A connected memory broker with one queue, `renamed`."""
    broker = MemoryBroker()
    await broker.connect()
    await broker.declare(
        Topology(
            (ExchangeDecl("renamed.x", "fanout"),),
            (QueueDecl("renamed"),),
            (Binding("renamed.x", "renamed"),),
        )
    )
    yield broker
    await broker.close()


async def test_a_listed_queue_is_found_by_its_broker_side_name_and_codec(broker: MemoryBroker):
    queue = Queue(Id("app", "tasks"), BROKER, "renamed", codec="msgpack")
    carry_out, counters = requests(broker, tasks=queue)
    assert await carry_out.execute(Publish("app:tasks", {"n": 1}, {"tenant": "blue"})) == (True, None)
    [(body, properties)] = broker.messages("renamed")
    assert (body, properties.content_type) == (b"\x81\xa1n\x01", "application/msgpack")
    assert properties.headers == {"tenant": "blue"}
    assert len(properties.message_id or "") == 36
    assert counters.published == 1
    info = {"message_count": 1, "ready": 1, "consumer_count": 0}
    assert await carry_out.execute(Info("app:tasks")) == (info, None)


@pytest.mark.parametrize(
    ("queue_id", "reason"),
    [
        ("renamed", "queue_not_found"),
        (":renamed", "queue_not_found"),
        ("app:", "queue_not_found"),
        ("app:nowhere", "queue_not_found"),
        ("app:elsewhere", "queue_not_found"),
        ("app:foreign", "observed"),
        ("app:huge", "too_large"),
        ("app:raw", "encode_failed"),
    ],
)
async def test_what_cannot_be_published_is_internal_retryable_and_says_the_reason(
    broker: MemoryBroker, queue_id: str, reason: str
):
    carry_out, counters = requests(
        broker,
        elsewhere=Queue(Id("app", "elsewhere"), Id("app", "other"), "renamed"),
        foreign=Queue(Id("app", "foreign"), BROKER, "renamed", observe=True),
        huge=Queue(Id("app", "huge"), BROKER, "renamed"),
        raw=Queue(Id("app", "raw"), BROKER, "renamed", codec="raw"),
    )
    value = "x" * MAX_BODY if queue_id == "app:huge" else {"n": 1}
    nothing, error = await carry_out.execute(Publish(queue_id, value, {}))
    assert nothing is None
    assert (error.kind_value, error.is_retryable) == ("Internal", True)
    assert error.detail_values == {"reason": reason}
    assert counters.publish_refused == {reason: 1}
    assert broker.messages("renamed") == []


@pytest.mark.parametrize("reason", ["unroutable", "nacked", "timeout", "connection"])
async def test_a_brokers_refusal_reaches_the_handler_with_its_reason(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch, reason: str
):
    def refuse(_message: Any, done: Any, **_options: Any) -> None:
        asyncio.get_running_loop().call_soon(done, BrokerError(reason, f"it is {reason}"))

    monkeypatch.setattr(broker, "publish_soon", refuse)
    carry_out, _ = requests(broker, tasks=Queue(Id("app", "tasks"), BROKER, "renamed"))
    _, error = await carry_out.execute(Publish("app:tasks", {"n": 1}, {}))
    assert error.detail_values == {"reason": reason}


async def test_a_handler_stuck_in_c_is_dead_and_the_process_is_asked_to_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lunaq_runtime.worker.worker.STUCK_GRACE", 0.1)
    run = await stage.start(
        # A value whose call is a call of itself: seconds in one C function, and no hook in between.
        "function handle(b) local meta = {} meta.__call = setmetatable({}, meta) meta.__call() end",
        timeout=0.2,
        drain_timeout=0.2,
    )
    run.app._workers[CONSUMER]._stuck_grace = 0.1
    await stage.send()
    failure = await asyncio.wait_for(run.app.wait_failed(), 30)
    assert "in a C call" in str(failure)
    assert not run.app.healthy
    dead = (await stage.dead())[0]
    assert dead.properties.headers["x_dead_letter_reason"] == "timeout"
    await run.app.drain()
    assert run.broker.of("m") == ["deliver", "publish dead", "confirm dead", "ack"]


@pytest.mark.parametrize(
    ("source", "text"),
    [("\nfunction handle(", "handler.lua:8"), ("error('at load')", "at load"), ("local x = 1", "handle")],
)
async def test_a_handler_that_does_not_load_never_consumes_and_says_where(
    stage: Stage, source: str, text: str
):
    run = await stage.prepare(source)
    await run.app.start()
    await run.until(lambda: bool(run.app.broken), "the handler to be refused")
    assert text in run.app.broken[CONSUMER]
    assert not run.app.ready
    assert ("consume", "") not in run.broker.events


async def test_with_auto_ack_settling_is_true_and_sends_nothing(stage: Stage):
    source = """
    function handle(b)
      local m = queue.message()
      log{ack = (m:ack()), again = tostring(select(2, m:ack()))}
      error("lost, as configured")
    end"""
    run = await stage.start(source, auto_ack=True)
    await stage.send()
    assert await stage.logged(1) == [{"ack": True, "again": "queue.Message already settled"}]
    await run.until(lambda: run.counters.failed == 1, "the failure to be counted")
    async with asyncio.timeout(20):  # less than the drain would wait for a delivery that is still held
        await run.app.drain()
    assert run.broker.of("m") == ["deliver"]
    assert await stage.ready("app:work") == 0


async def test_with_auto_ack_a_drain_still_runs_what_the_broker_has_let_go(stage: Stage):
    run = await stage.start("function handle(b) log{n = b.n}; gate() end", auto_ack=True)
    for n in range(3):
        await stage.send({"n": n}, message_id=f"m{n}")
    await run.seen("deliver", "m2")
    draining = asyncio.create_task(run.app.drain())
    await stage.open_gate()
    await draining
    assert sorted(record["n"] for record in await stage.logged(3)) == [0, 1, 2]


async def test_on_an_observed_queue_a_failure_is_handed_back_after_a_pause_and_never_published(stage: Stage):
    await stage.observer.declare(
        Topology(
            (ExchangeDecl("app:work.x", "fanout"),),
            (QueueDecl("app:work"),),
            (Binding("app:work.x", "app:work"),),
        )
    )
    run = await stage.start("function handle(b) return nil, 'no' end", observe=True)
    await stage.send()
    await run.seen("requeue", times=2)
    assert set(run.broker.of("m")) == {"deliver", "requeue"}


async def test_a_missing_dead_letter_target_keeps_the_app_from_consuming_until_it_is_there(
    stage: Stage, caplog: pytest.LogCaptureFixture
):
    run = await stage.prepare("function handle(b) log{n = b.n} end", dead_letter=Id("app", "graveyard"))
    await run.app.start()
    await run.until(lambda: "no queue 'app:graveyard'" in caplog.text, "the missing queue to be named")
    assert not run.app.ready
    assert ("consume", "") not in run.broker.events
    await stage.observer.declare(Topology(queues=(QueueDecl("app:graveyard"),)))
    await run.ready()


async def test_an_app_waits_for_its_broker_and_says_it_is_not_ready(
    stage: Stage, caplog: pytest.LogCaptureFixture
):
    run = await stage.prepare("function handle(b) log{n = b.n} end")
    refusals = [BrokerError("connection", "refused")] * 2
    connect = run.broker.inner.connect

    async def later() -> None:
        if refusals:
            raise refusals.pop()
        await connect()

    run.broker.inner.connect = later  # type: ignore[method-assign]
    await run.app.start()
    assert not run.app.ready
    assert run.app.healthy
    await run.ready()
    assert caplog.text.count("cannot connect") == 2


async def test_a_broken_connection_delivers_again_and_a_late_outcome_of_before_settles_nothing(stage: Stage):
    run = await stage.start(
        "function handle(b) log{n = b.n}; gate(); return nil, 'no' end", retry=ONCE, concurrency=2
    )
    await stage.send({"n": 1})
    await stage.logged(1)
    run.broker.inner.interrupt()
    await stage.logged(2)
    await stage.open_gate()
    await run.seen("ack")
    await run.until(lambda: run.counters.lost == 1, "the late outcome to be dropped")
    assert len(await stage.dead()) == 1
    assert run.broker.of("m").count("publish dead") == 1


def test_message_ids_are_random_uuids_and_none_comes_twice():
    ids = [new_id().decode() for _ in range(2000)]
    assert len(set(ids)) == 2000
    parsed = [uuid.UUID(one) for one in ids]
    assert [str(one) for one in parsed] == ids
    assert {(one.version, one.variant) for one in parsed} == {(4, uuid.RFC_4122)}
    bits = [one.int.bit_count() for one in parsed]
    assert 60 < sum(bits) / len(bits) < 66  # 122 random bits and one that is set


def test_an_answer_of_a_policy_holds_no_longer_than_the_policy():
    policies = [Policy(publish=True, publish_to=("app:*",)), Policy(publish=True), DENY_ALL]
    counters = Counters()
    host = WorkerHost(lambda: policies[0], counters)
    for allowed in ((True, True), (True, False), (False, False)):
        for _ in range(3):
            answers = host.can("queue.publish", ""), host.can("queue.publish.queue", "app:x")
            assert answers == allowed
        policies.pop(0)
        policies.append(DENY_ALL)
    assert sum(counters.denials.counts().values()) == 3 + 6


def test_a_publish_needs_both_rights_and_what_a_policy_allowed_ends_with_it():
    both = Policy(publish=True, publish_to=("app:x",))
    policies = [both, Policy(publish=True), both, Policy(publish_to=("app:x",)), both, DENY_ALL]
    counters = Counters()
    host = WorkerHost(lambda: policies[0], counters)
    for allowed in (True, False, True, False, True, False):
        for _ in range(3):
            assert host.may_publish("app:x") is allowed
            assert not host.may_publish("app:y")
        policies.pop(0)
        policies.append(DENY_ALL)
    assert not counters.denials.counts()  # who asks this may ask again
