"""Deliveries that run in batches: no order, ack, retry or neighbour may show that they do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from harness.worker_stage import CONSUMER
from lunaq_runtime import codecs
from lunaq_runtime.lua.state import LuaState, NoRoomError
from lunaq_runtime.worker.batch import Batch

if TYPE_CHECKING:
    from harness.worker_stage import Running, Stage

STUCK = "local meta = {} meta.__call = setmetatable({}, meta) meta.__call()"
"""Seconds in one C function, and no hook in between."""


def numbered(count: int, **special: str) -> dict[str, Any]:
    """Bodies of one shape, by message id m0, m1 and so on; `special` says what some of them are to do."""
    return {f"m{n}": {"n": n, "do": special.get(f"m{n}", "")} for n in range(count)}


@pytest.fixture(autouse=True)
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how many deliveries each batch had; a slow machine makes them no smaller."""
    sizes: list[int] = []
    gather = Batch.gather

    def noted(batch: Batch, *arguments: Any) -> Any:
        alone = gather(batch, *arguments)
        sizes.append(len(batch.deliveries))
        return alone

    monkeypatch.setattr(Batch, "gather", noted)
    monkeypatch.setattr("lunaq_runtime.worker.lane.LONGEST", 60.0)
    return sizes


def settled(run: Running, what: str = "ack") -> list[str]:
    return [identity for event, identity in run.broker.events if event == what]


async def test_short_handlers_run_in_batches_and_everything_is_acked_in_order(
    stage: Stage, batches: list[int]
):
    run = await stage.start_on(numbered(100), "function handle(b) end", concurrency=1, prefetch=100)
    await run.seen("ack", "m99")
    assert settled(run) == list(numbered(100))
    assert max(batches) > 4
    assert (run.counters.handled, run.counters.acked, run.counters.failed) == (100, 100, 0)
    assert sum(run.counters.buckets) == 100
    await run.app.drain()
    assert await stage.ready("app:work") == 0


async def test_the_order_is_kept_where_some_have_to_wait_in_the_middle(stage: Stage, batches: list[int]):
    source = (
        "seen = {} function handle(b) seen[#seen + 1] = b.n if b.n % 10 == 9 then log(seen) seen = {} end end"
    )
    await stage.start_on(numbered(100), source, concurrency=1, prefetch=100)
    records = await stage.logged(10)
    assert [n for record in records for n in record] == list(range(100))
    assert max(batches) > 1


async def test_what_a_batch_cannot_hold_runs_by_itself_in_its_turn(stage: Stage, batches: list[int]):
    source = """
    seen = {}
    function handle(b)
      seen[#seen + 1] = queue.message():id()
      if #seen == 60 then log(seen) end
    end"""
    bodies: dict[str, Any] = numbered(60)
    bodies |= {"m20": "a text", "m21": [1], "m33": {"n": 33, "do": "x" * 40_000}, "m50": None}
    await stage.start_on(bodies, source, concurrency=1, prefetch=100)
    assert (await stage.logged(1))[0] == list(bodies)
    assert max(batches) > 4


async def test_what_turns_out_to_run_by_itself_is_decoded_once(
    stage: Stage, batches: list[int], monkeypatch: pytest.MonkeyPatch
):
    decoded: list[bytes] = []
    decode = codecs._decode_json_for_lua

    def noted(body: bytes) -> Any:
        decoded.append(body)
        return decode(body)

    monkeypatch.setattr(codecs, "_decode_json_for_lua", noted)
    monkeypatch.setattr(codecs, "decoders_for_lua", codecs.DecodersForLua)  # none that are known already
    bodies: dict[str, Any] = {f"m{n}": [n] for n in range(60)}
    run = await stage.start_on(bodies, "function handle(b) end", concurrency=1, prefetch=100)
    await run.seen("ack", "m59")
    assert len(decoded) == 60
    assert batches


@pytest.mark.parametrize("room", [True, False])
async def test_the_order_is_kept_where_some_fail_before_one_that_runs_by_itself(
    stage: Stage, batches: list[int], monkeypatch: pytest.MonkeyPatch, *, room: bool
):
    start = LuaState.start_batch

    def refuse_some(self: LuaState, count: int, *arguments: Any) -> Any:
        if not room and count == 8:
            raise NoRoomError
        return start(self, count, *arguments)

    monkeypatch.setattr(LuaState, "start_batch", refuse_some)
    source = """
    seen = {}
    function handle(b)
      if queue.message():header("attempts") > 0 then return end
      seen[#seen + 1] = queue.message():id()
      if #seen == 60 then log(seen) end
      if b["do"] == "fail" then error("once") end
    end"""
    bodies: dict[str, Any] = numbered(60, m9="fail", m17="fail")
    bodies |= {"m14": [1], "m20": "a text"}
    run = await stage.start_on(bodies, source, concurrency=1, prefetch=100)
    assert (await stage.logged(1))[0] == list(bodies)
    await run.until(lambda: run.counters.acked + run.counters.retried == 62, "everything to be settled")
    assert sum(run.counters.buckets) == run.counters.handled == 62
    assert max(batches) > 4


async def test_a_batch_that_finds_no_room_runs_one_by_one(
    stage: Stage, batches: list[int], monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: Any) -> Any:
        raise NoRoomError

    monkeypatch.setattr(LuaState, "start_batch", refuse)
    source = "seen = {} function handle(b) seen[#seen + 1] = b.n if #seen == 60 then log(seen) end end"
    run = await stage.start_on(numbered(60), source, concurrency=1, prefetch=100)
    assert (await stage.logged(1))[0] == list(range(60))
    await run.seen("ack", "m59")
    assert settled(run) == list(numbered(60))
    assert batches


async def test_a_defect_in_a_batch_loses_nothing(
    stage: Stage, batches: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lunaq_runtime.worker.desk.DEFECT_PAUSE", 0.01)
    start = LuaState.start_batch
    failures: list[int] = []

    def fail_once(self: LuaState, *arguments: Any) -> Any:
        outcome = start(self, *arguments)
        if not failures:
            failures.append(1)
            raise RuntimeError("a defect of ours")
        return outcome

    monkeypatch.setattr(LuaState, "start_batch", fail_once)
    run = await stage.start_on(numbered(60), "function handle(b) end", concurrency=1, prefetch=100)
    await run.until(lambda: set(settled(run)) == set(numbered(60)), "all to be acked")
    assert (run.counters.failed, len(settled(run))) == (0, 60)
    assert failures
    assert batches


async def test_a_batch_that_cannot_be_followed_runs_again_and_loses_nothing(
    stage: Stage, batches: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", "lunaq.handler")
    monkeypatch.setattr("lunaq_runtime.worker.desk.DEFECT_PAUSE", 0.01)
    turn = Batch.turn
    failures: list[int] = []

    def fail_once(self: Batch, place: int) -> bool:
        if not failures and place == 3 and len(self.deliveries) > place:
            failures.append(place)
            raise RuntimeError("a defect of ours")
        return turn(self, place)

    monkeypatch.setattr(Batch, "turn", fail_once)
    source = "function handle(b) logger:info(queue.message():id()) end"
    run = await stage.start_on(numbered(60), source, concurrency=1, prefetch=100)
    await run.until(lambda: set(settled(run)) == set(numbered(60)), "all to be acked")
    assert (run.counters.failed, len(settled(run))) == (0, 60)
    assert {record.message for record in caplog.records if record.name == "lunaq.handler"} == set(
        numbered(60)
    )
    assert failures
    assert max(batches) > 4


async def test_a_failure_in_the_middle_is_retried_and_the_others_are_handled_once(
    stage: Stage, batches: list[int]
):
    source = """
    function handle(b)
      if b["do"] == "fail" and queue.message():header("attempts") == 0 then error("once") end
      if b["do"] == "fail" then log{retried = b.n} end
    end"""
    bodies = numbered(60, m20="fail", m41="fail")
    run = await stage.start_on(bodies, source, concurrency=1, prefetch=100)
    assert sorted(record["retried"] for record in await stage.logged(2)) == [20, 41]
    await run.seen("ack", "m20", times=2)
    await run.seen("ack", "m41", times=2)
    assert sorted(settled(run)) == sorted([*bodies, "m20", "m41"])
    assert (run.counters.handled, run.counters.failed, run.counters.retried) == (62, 2, 2)
    assert max(batches) > 4


async def test_one_that_succeeds_with_several_coroutines_speaks_for_itself_only(
    stage: Stage, batches: list[int]
):
    source = """
    seen = {}
    function handle(b)
      seen[#seen + 1] = b.n
      if b["do"] == "spawn" then coroutine.spawn(function() end) end
      if #seen == 60 then log(seen) end
    end"""
    run = await stage.start_on(numbered(60, m25="spawn"), source, concurrency=1, prefetch=100)
    assert (await stage.logged(1))[0] == list(range(60))
    await run.seen("ack", "m59")
    assert settled(run) == list(numbered(60))
    assert max(batches) > 4


async def test_a_slow_one_holds_up_neither_the_acks_before_it_nor_the_messages_behind_it(
    stage: Stage, batches: list[int]
):
    source = "function handle(b) if b['do'] == 'loop' then while true do end end end"
    bodies = numbered(60, m25="loop")
    run = await stage.start_on(bodies, source, concurrency=2, prefetch=100, timeout=600.0, drain_timeout=0.2)
    await run.until(lambda: len(settled(run)) == 59, "all but one to be acked")
    assert run.counters.running == 1
    assert "m25" not in settled(run)
    assert max(batches) > 4
    await run.app.drain()
    assert settled(run, "requeue") == ["m25"]


async def test_one_that_is_stuck_in_c_takes_nobody_with_it(stage: Stage, batches: list[int]):
    source = f"function handle(b) if b['do'] == 'stuck' then {STUCK} end log{{n = b.n}} end"
    quick = f"function handle(b) if b['do'] == 'stuck' then {STUCK} end end"
    bodies = numbered(60, m40="stuck")
    options: dict[str, Any] = {"concurrency": 1, "prefetch": 100, "timeout": 0.3, "drain_timeout": 0.2}
    first = await stage.start_on(bodies, quick, **options)
    first.app._workers[CONSUMER]._stuck_grace = 0.1
    failure = await asyncio.wait_for(first.app.wait_failed(), 60)
    assert "in a C call" in str(failure)
    await first.app.drain()
    assert max(batches) > 4
    assert settled(first, "publish dead") == []
    second = await stage.start(source, **options)
    second.app._workers[CONSUMER]._stuck_grace = 0.1
    failure = await asyncio.wait_for(second.app.wait_failed(), 60)
    dead = (await stage.dead())[0]
    assert (dead.properties.message_id, dead.properties.headers["x_dead_letter_reason"]) == ("m40", "timeout")
    await second.app.drain()
    third = await stage.start(source, **options)
    await third.until(lambda: not third.counters.running, "what is left to be handled")
    await third.app.drain()
    assert await stage.ready("app:work") == 0
    assert len(await stage.dead()) == 1


async def test_a_drain_hands_back_what_a_batch_has_not_started(stage: Stage, batches: list[int]):
    source = "function handle(b) if b['do'] == 'wait' then log{n = b.n} gate() end end"
    bodies = numbered(60, m30="wait")
    run = await stage.start_on(bodies, source, concurrency=1, prefetch=100)
    await stage.logged(1)
    assert max(batches) > 4
    draining = asyncio.create_task(run.app.drain())
    await run.seen("requeue", "m59")
    await stage.open_gate()
    await draining
    assert settled(run) == list(bodies)[:31]
    assert sorted(settled(run, "requeue")) == sorted(list(bodies)[31:])
