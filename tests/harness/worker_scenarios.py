"""What a consumer promises about delivery and settlement, told on whatever broker `stage` stands on.

`tests/unit` runs it on the memory broker, `tests/broker` on RabbitMQ. Each promise names what it would cost
to break it; the sabotage table in `tests/sabotage` breaks them one by one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from harness.worker_stage import CONSUMER, Running, Stage
from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.entries.model import Retry
from lunaq_runtime.policy import Policy
from lunaq_runtime.worker.confirms import MOST_BYTES

if TYPE_CHECKING:
    from collections.abc import Coroutine

ONCE = Retry(max_attempts=1, delays_ms=(20,))


class DeliveryScenarios:
    """Success, failure, retry and dead letter."""

    async def test_a_message_is_acked_after_its_handler_ended_and_not_before(self, stage: Stage):
        run = await stage.start('function handle(b) log{at="start"}; gate(); log{at="end"} end')
        await stage.send(message_id="m")
        assert await stage.logged(1) == [{"at": "start"}]
        assert run.broker.of("m") == ["deliver"]
        await stage.open_gate()
        assert await stage.logged(2) == [{"at": "start"}, {"at": "end"}]
        await run.seen("ack")
        ended = [what for what, _ in run.broker.events if what in ("confirm app:log.x", "ack")]
        assert ended == ["confirm app:log.x", "confirm app:log.x", "ack"]
        assert run.counters.acked == 1

    async def test_a_crash_while_the_handler_runs_delivers_the_message_again(self, stage: Stage):
        run = await stage.start('function handle(b) log{at="start"}; gate() end')
        await stage.send()
        await stage.logged(1)
        await stage.crash(run)
        await stage.open_gate()
        again = await stage.start(
            "function handle(b) log{redelivered = queue.message():header('amqp.redelivered')} end"
        )
        assert (await stage.logged(2))[1] == {"redelivered": True}
        await again.seen("ack")

    async def test_a_handler_that_returns_nil_and_an_error_is_retried_and_then_dead_with_the_reason(
        self, stage: Stage
    ):
        source = """
        function handle(body)
          log{attempts = queue.message():header("attempts")}
          return nil, errors.new{message = "smtp is down", kind = errors.UNAVAILABLE}
        end"""
        run = await stage.start(source)
        await stage.send(body=b'{"to": "a"}', message_id="m", headers={"tenant": "blue"})
        dead = (await stage.dead())[0]
        assert await stage.logged(3) == [{"attempts": 0}, {"attempts": 1}, {"attempts": 2}]
        assert dead.body == b'{"to": "a"}'
        assert dead.properties.message_id == "m"
        headers = dict(dead.properties.headers)
        assert abs(headers.pop("x_dead_letter_time") - run.app._workers[CONSUMER]._clock()) < 600
        assert headers == {
            "tenant": "blue",
            "attempts": 3,
            "x_original_queue": "app:work",
            "x_dead_letter_reason": "max_attempts",
            "x_error": "smtp is down",
            "x_error_kind": "Unavailable",
        }
        assert (run.counters.failed, run.counters.retried, run.counters.dead) == (3, 2, 1)

    @pytest.mark.parametrize(
        ("body", "error", "kind"),
        [
            pytest.param("return false", "returned false", "Internal", id="false"),
            pytest.param('return nil, "just text"', "just text", "Internal", id="nil and a text"),
            pytest.param('return true, "just text"', "just text", "Internal", id="true and a text"),
            pytest.param('error("boom")', "boom", "Internal", id="raise"),
            pytest.param(
                'error(errors.new{message = "no", kind = errors.CONFLICT})',
                "no",
                "Conflict",
                id="raise an error",
            ),
            pytest.param("queue.message():nack() return true", "msg:nack()", "", id="nack then true"),
            pytest.param("while true do end", "time limit", "Timeout", id="endless loop"),
            pytest.param("time.sleep('1h')", "time limit", "Timeout", id="endless sleep"),
        ],
    )
    async def test_every_failure_goes_the_way_of_a_failure(
        self, stage: Stage, body: str, error: str, kind: str
    ):
        run = await stage.start(f"function handle(b) {body} end", retry=ONCE, timeout=0.5)
        await stage.send()
        headers = (await stage.dead())[0].properties.headers
        assert error in headers["x_error"]
        assert (headers["x_error_kind"], headers["attempts"]) == (kind, 1)
        await run.seen("ack")
        assert run.broker.of("m") == ["deliver", "publish dead", "confirm dead", "ack"]

    @pytest.mark.parametrize("body", ["", "return nil", "return true", "return 0", "return 'x'", "return {}"])
    async def test_every_success_is_acked(self, stage: Stage, body: str):
        run = await stage.start(f"function handle(b) {body} end")
        await stage.send()
        await run.seen("ack")
        assert run.broker.of("m") == ["deliver", "ack"]

    async def test_an_undecodable_body_is_dead_at_once_and_never_reaches_the_handler(self, stage: Stage):
        run = await stage.start("function handle(b) log{called = true} end")
        await stage.send(body=b"{not json", message_id="poison")
        dead = (await stage.dead())[0]
        assert dead.body == b"{not json"
        assert dead.properties.headers["x_dead_letter_reason"] == "decode_error"
        await run.seen("ack", "poison")
        await stage.send(message_id="next")
        assert await stage.logged(1) == [{"called": True}]

    async def test_a_retry_is_acked_only_once_it_is_confirmed(self, stage: Stage):
        run = await stage.start("function handle(b) return nil, 'no' end", retry=ONCE)
        run.broker.confirm_gate.clear()
        await stage.send()
        await run.seen("publish dead")
        await stage.send({"n": 2}, message_id="later")
        await run.seen("publish dead", "later")
        assert "ack" not in run.broker.of("m")
        run.broker.confirm_gate.set()
        await run.seen("ack")
        assert run.broker.of("m") == ["deliver", "publish dead", "confirm dead", "ack"]

    async def test_a_crash_between_confirm_and_ack_gives_a_duplicate_and_never_a_loss(self, stage: Stage):
        run = await stage.start("function handle(b) return nil, 'no' end", retry=ONCE)
        run.broker.lose_settlements = True
        await stage.send()
        await run.seen("ack")
        await stage.crash(run)
        await stage.start("function handle(b) return nil, 'no' end", retry=ONCE)
        dead = await stage.dead(2)
        assert [letter.properties.message_id for letter in dead] == ["m", "m"]

    async def test_a_refused_retry_keeps_the_message_until_the_retry_is_taken(self, stage: Stage):
        run = await stage.start("function handle(b) log{ran = true}; return nil, 'no' end", retry=ONCE)
        run.broker.refuse = lambda message: (
            BrokerError("nacked", "full") if message.exchange == "app:work.retry" else None
        )
        await stage.send()
        await run.seen("refuse dead", times=2)
        assert "ack" not in run.broker.of("m")
        assert run.counters.publish_failed >= 2
        run.broker.refuse = lambda _message: None
        await run.seen("ack")
        assert len(await stage.dead()) == 1
        assert await stage.logged(1) == [{"ran": True}]

    async def test_a_message_whose_retry_exchange_is_gone_is_there_again_after_a_restart(self, stage: Stage):
        run = await stage.start("function handle(b) return nil, 'no' end", retry=ONCE)
        await stage.observer.delete_exchange("app:work.retry")
        await stage.send()
        await run.until(lambda: run.counters.publish_failed > 0, "a refused retry")
        assert "ack" not in run.broker.of("m")
        await stage.crash(run)
        await stage.start("function handle(b) log{handled = true} end")
        assert await stage.logged(1) == [{"handled": True}]

    async def test_a_message_acked_by_its_handler_stays_acked_when_it_raises(self, stage: Stage):
        source = """
        function handle(b)
          local m = queue.message()
          local first, second, third = {m:ack()}, {m:ack()}, {m:nack()}
          log{ok = first[1], again = second[2]:kind() .. ": " .. second[2]:message(), nack = third[2]:kind()}
          error("after the ack")
        end"""
        run = await stage.start(source)
        await stage.send()
        text = "Invalid: queue.Message already settled"
        assert await stage.logged(1) == [{"ok": True, "again": text, "nack": "Invalid"}]
        await run.until(lambda: run.counters.failed == 1, "the failure to be counted")
        await run.app.drain()
        assert run.broker.of("m") == ["deliver", "ack"]
        assert await stage.ready("app:work") == 0

    async def test_a_nack_is_the_failure_path_and_tells_the_handler_after_the_confirm(self, stage: Stage):
        source = """
        function handle(b)
          local m = queue.message()
          local attempts = m:header("attempts")
          if attempts == 0 then log{nacked = (m:nack())} else log{attempts = attempts} end
        end"""
        run = await stage.start(source)
        run.broker.confirm_gate.clear()
        await stage.send()
        await run.seen("publish 20")
        assert run.counters.published == 0
        run.broker.confirm_gate.set()
        assert await stage.logged(2) == [{"nacked": True}, {"attempts": 1}]
        await run.seen("ack", times=2)
        settlements = [what for what in run.broker.of("m") if what != "deliver"]
        assert settlements == ["publish 20", "confirm 20", "ack", "ack"]

    async def test_a_nack_whose_confirm_takes_longer_than_the_handler_may_is_settled_once(self, stage: Stage):
        run = await stage.start("function handle(b) queue.message():nack() end", retry=ONCE, timeout=0.3)
        run.broker.confirm_gate.clear()
        await stage.send()
        await run.until(lambda: run.counters.failed == 1, "the handler to be out of time")
        run.broker.confirm_gate.set()
        await run.seen("ack")
        await run.app.drain()
        assert run.broker.of("m") == ["deliver", "publish dead", "confirm dead", "ack"]

    async def test_headers_reach_the_handler_with_their_types_and_survive_retries(self, stage: Stage):
        source = """
        function handle(b)
          local m = queue.message()
          local h = m:headers()
          h["amqp.exchange"], h["amqp.routing_key"], h["amqp.redelivered"] = nil, nil, nil
          for key in pairs(h) do if key:sub(1, 2) == "x-" then h[key] = nil end end
          log{id = m:id(), headers = h, float = math.type(h.ratio), int = math.type(h.count)}
          if m:header("attempts") < 2 then return nil, "again" end
        end"""
        await stage.start(source)
        await stage.send(
            message_id="m-7",
            correlation_id="c-1",
            reply_to="app:replies",
            type="mail",
            expiration="30000",
            timestamp=1_700_000_000,
            priority=0,
            delivery_mode=2,
            content_type="application/json",
            headers={
                "priority": "high",
                "partition_key": "p",
                "count": 9_007_199_254_740_993,
                "ratio": 0.5,
                "yes": True,
                "no": False,
                "sqs.group": "g",
                "amqp.unknown": "u",
            },
        )
        records = await stage.logged(3)
        for attempts, record in enumerate(records):
            assert record["id"] == "m-7"
            assert (record["float"], record["int"]) == ("float", "integer")
            headers = {key: value for key, value in record["headers"].items() if not key.startswith("x_")}
            assert headers == {
                "attempts": attempts,
                "correlation_id": "c-1",
                "reply_to": "app:replies",
                "message_type": "mail",
                "amqp.expiration": "30000",
                "amqp.priority": 0,
                "amqp.delivery_mode": 2,
                "content_type": "application/json",
                "timestamp": 1_700_000_000,
                "priority": "high",
                "partition_key": "p",
                "count": 9_007_199_254_740_993,
                "ratio": 0.5,
                "yes": True,
                "no": False,
                "sqs.group": "g",
                "amqp.unknown": "u",
            }

    async def test_integers_of_64_bits_survive_publish_and_consume(self, stage: Stage):
        await stage.start("function handle(b) log{same = b.n == 9007199254740993, n = b.n} end")
        await stage.send(body=b'{"n": 9007199254740993}')
        assert await stage.logged(1) == [{"same": True, "n": 9_007_199_254_740_993}]


class PublishScenarios:
    """`queue.publish` from a handler."""

    async def test_a_publish_returns_true_once_the_broker_has_confirmed(self, stage: Stage):
        run = await stage.start(
            "function handle(b) local ok, e = queue.publish('app:work', {loop = true}) log{ok = ok} end",
            policy=Policy(publish=True, publish_to=("*:*",), consume=("*:*",)),
            concurrency=1,
        )
        await stage.send({"n": 1})
        await stage.logged(1)
        published = [what for what, _ in run.broker.events if what.startswith(("publish", "confirm"))]
        assert published[:4] == [
            "publish app:work.x",
            "confirm app:work.x",
            "publish app:log.x",
            "confirm app:log.x",
        ]

    async def test_a_publish_without_the_general_right_is_denied(self, stage: Stage):
        await self._denied(
            stage,
            Policy(publish=False, publish_to=("*:*",), consume=("*:*",)),
            "queue publishing not allowed",
        )

    async def test_a_publish_without_the_right_on_that_queue_is_denied(self, stage: Stage):
        policy = Policy(publish=True, publish_to=("app:gate",), consume=("*:*",))
        await self._denied(stage, policy, "not allowed to publish to queue: app:log")

    async def _denied(self, stage: Stage, policy: Policy, text: str) -> None:
        source = """
        function handle(b)
          local ok, err = queue.publish("app:log", {secret = 1})
          local text = tostring(ok) .. "|" .. err:message() .. "|" .. tostring(err:retryable())
          return nil, errors.new{message = text, kind = err:kind()}
        end"""
        run = await stage.start(source, policy=policy, retry=ONCE)
        await stage.send()
        headers = (await stage.dead())[0].properties.headers
        assert headers["x_error"] == f"nil|{text}|false"
        assert headers["x_error_kind"] == "PermissionDenied"
        assert "publish app:log.x" not in [what for what, _ in run.broker.events]
        assert await stage.ready("app:log") == 0

    async def test_a_publish_to_an_unknown_queue_is_internal_and_retryable(self, stage: Stage):
        source = """
        function handle(b)
          local ok, err = queue.publish("app:nowhere", {n = 1})
          log{text = tostring(err), kind = err:kind(), retry = err:retryable(), why = err:details().reason}
        end"""
        await stage.start(source)
        await stage.send()
        assert await stage.logged(1) == [
            {"text": "queue not found", "kind": "Internal", "retry": True, "why": "queue_not_found"}
        ]

    async def test_a_handler_publishes_headers_that_its_consumer_reads_back(self, stage: Stage):
        source = """
        function handle(b)
          if b.first then
            assert(queue.publish("app:work", {second = true}, {priority = "high", tenant = "blue"}))
          else
            local m = queue.message()
            log{priority = m:header("priority"), tenant = m:header("tenant"), id = #m:id()}
          end
        end"""
        await stage.start(source)
        await stage.send({"first": True})
        assert await stage.logged(1) == [{"priority": "high", "tenant": "blue", "id": 36}]


class AheadScenarios:
    """Handlers that run ahead of the confirms of what they publish: faster, and nobody can tell."""

    SOURCE = """
    function handle(b)
      local ok, err = queue.publish("app:log", {n = b.n})
      return ok, err
    end"""

    async def gated(self, stage: Stage, source: str = SOURCE, **options: Any) -> Running:
        """Start an app whose publishes to the log are not confirmed yet."""
        run = await stage.start(source, **options)
        run.broker.gated = "app:log.x"
        run.broker.confirm_gate.clear()
        return run

    async def test_no_message_is_acked_before_what_it_published_is_confirmed(self, stage: Stage):
        run = await self.gated(stage, concurrency=5)
        for n in range(5):
            await stage.send({"n": n}, message_id=f"m{n}")
        await run.until(
            lambda: [what for what, _ in run.broker.events].count("publish app:log.x") == 5, "five publishes"
        )
        assert run.counters.running == 5
        assert ("ack", "m0") not in run.broker.events
        run.broker.confirm_gate.set()
        for n in range(5):
            await run.seen("ack", f"m{n}")
        ended = [what for what, _ in run.broker.events if what in ("confirm app:log.x", "ack")]
        assert ended.index("ack") >= 1
        assert run.counters.running == 0

    @staticmethod
    def published(run: Running) -> int:
        return [what for what, _ in run.broker.events].count("publish app:log.x")

    async def test_while_they_wait_for_confirms_they_need_one_lua_state_and_no_slot(self, stage: Stage):
        run = await self.gated(stage, concurrency=2, prefetch=100)
        before = run.counters.lua_memory
        for n in range(60):
            await stage.send({"n": n}, message_id=f"m{n}")
        await run.until(lambda: self.published(run) == 60, "all to wait for their confirms")
        assert run.counters.running == 60
        assert run.counters.lua_memory < before + 256 * 1024
        run.broker.confirm_gate.set()
        await run.until(lambda: run.counters.running == 0, "all to be acked")

    async def test_where_much_is_on_its_way_already_they_wait_in_their_slots(self, stage: Stage):
        source = """
        function handle(b)
          local ok, err = queue.publish("app:log", {x = string.rep("x", 1 << 20)})
          return ok, err
        end"""
        run = await self.gated(stage, source, concurrency=2, prefetch=100)
        for n in range(60):
            await stage.send({"n": n}, message_id=f"m{n}")
        slots = run.app._workers[CONSUMER]._slots
        full = lambda: all(slot.pending for slot in slots)  # noqa: E731 - nothing can start then
        await run.until(lambda: full() or self.published(run) == 60, "all slots to wait")
        assert MOST_BYTES >> 20 <= self.published(run) < 60
        run.broker.confirm_gate.set()
        await run.until(lambda: run.counters.acked == 60, "all to be acked")

    async def test_one_slot_alone_keeps_the_order(self, stage: Stage):
        run = await self.gated(stage, concurrency=1)
        await stage.send({"n": 1}, message_id="first")
        await stage.send({"n": 2}, message_id="second")
        await run.seen("deliver", "second")
        await run.until(lambda: "publish app:log.x" in dict(run.broker.events), "the first publish")
        await asyncio.sleep(0)
        assert [what for what, _ in run.broker.events].count("publish app:log.x") == 1
        run.broker.confirm_gate.set()
        await run.seen("ack", "second")
        log = [body["n"] for body in await stage.logged(2)]
        assert log == [1, 2]

    async def test_a_refusal_reaches_the_handler_where_it_published_and_once(self, stage: Stage):
        source = """
        function handle(b)
          local ok, err = queue.publish("app:log", {n = 1})
          if not ok then log{why = err:details().reason} end
        end"""
        run = await stage.start(source)
        answers = [BrokerError("nacked", "no room"), BrokerError("nacked", "no room")]
        run.broker.refuse = lambda message: (
            answers.pop() if answers and message.exchange == "app:log.x" else None
        )
        await stage.send()
        assert await stage.logged(1) == [{"why": "nacked"}]
        await run.seen("ack")
        # Refused to the run that went ahead, and to the one that took its place.
        assert [what for what, _ in run.broker.events].count("refuse app:log.x") == 2

    async def test_a_broker_that_takes_it_the_second_time_makes_it_a_success(self, stage: Stage):
        run = await stage.start(self.SOURCE, concurrency=2)
        answers = [BrokerError("nacked", "no room")]
        run.broker.refuse = lambda message: (
            answers.pop() if answers and message.exchange == "app:log.x" else None
        )
        await stage.send({"n": 7})
        assert await stage.logged(1) == [{"n": 7}]
        await run.seen("ack")
        assert run.counters.failed == 0

    async def test_one_whose_time_is_up_while_it_waits_for_the_confirm_has_failed(self, stage: Stage):
        run = await self.gated(stage, timeout=0.3, retry=ONCE)
        await stage.send()
        headers = (await stage.dead())[0].properties.headers
        assert "time limit of 0.3s" in headers["x_error"]
        run.broker.confirm_gate.set()

    async def test_one_that_waits_for_the_confirm_is_handed_back_at_the_drain_deadline(self, stage: Stage):
        run = await self.gated(stage, drain_timeout=0.2, concurrency=2)
        await stage.send(headers={"attempts": 1})
        await run.until(lambda: "publish app:log.x" in dict(run.broker.events), "the publish")
        await run.app.drain()
        assert run.broker.of("m") == ["deliver", "requeue"]
        run.broker.confirm_gate.set()


_ANYWHERE = Policy(publish=True, publish_to=("*:*",), consume=("*:*",))


class ConcurrencyScenarios:
    """Slots: side by side, never twice in one, and never stuck behind each other."""

    async def test_two_handlers_overlap_at_concurrency_2_while_both_sleep(self, stage: Stage):
        await stage.start("function handle(b) log{n = b.n}; gate() end", concurrency=2, timeout=300.0)
        await stage.send({"n": 1})
        await stage.send({"n": 2})
        assert sorted(record["n"] for record in await stage.logged(2)) == [1, 2]
        await stage.open_gate()

    async def test_at_concurrency_1_handlers_never_overlap(self, stage: Stage):
        source = """
        local running = 0
        function handle(b)
          running = running + 1
          log{running = running}
          time.sleep("10ms")
          running = running - 1
        end"""
        await stage.start(source, concurrency=1)
        for n in range(5):
            await stage.send({"n": n})
        assert await stage.logged(5) == [{"running": 1}] * 5

    async def test_an_endless_loop_in_one_slot_leaves_the_others_going_until_its_time_is_up(
        self, stage: Stage
    ):
        source = """
        function handle(b)
          if b.loop then log{loop = true}; while true do end end
          log{n = b.n}
        end"""
        run = await stage.start(source, concurrency=2, timeout=3.0, retry=ONCE)
        await stage.send({"loop": True}, message_id="loop")
        await stage.logged(1)
        for n in range(10):
            await stage.send({"n": n}, message_id=f"m{n}")
        records = await stage.logged(11)
        assert [record["n"] for record in records[1:]] == list(range(10))
        assert run.broker.of("loop") == ["deliver"]
        assert (await stage.dead())[0].properties.headers["x_error_kind"] == "Timeout"

    async def test_the_ack_of_a_finished_message_does_not_wait_for_a_slow_one_behind_it(self, stage: Stage):
        source = "function handle(b) if b.slow then while true do end end end"
        run = await stage.start_on(
            {"quick": {"slow": False}, "slow": {"slow": True}}, source, concurrency=1, drain_timeout=0.2
        )
        await run.seen("ack", "quick")
        await run.until(lambda: run.counters.running == 1, "the slow one to be at work")
        assert (run.counters.running, run.broker.of("slow")) == (1, ["deliver"])

    async def test_what_arrived_with_an_endless_loop_goes_through_the_other_slots(self, stage: Stage):
        source = "function handle(b) if b.loop then while true do end end end"
        bodies = {"loop": {"loop": True}} | {f"m{n}": {"n": n} for n in range(20)}
        run = await stage.start_on(bodies, source, concurrency=2, drain_timeout=0.2)
        for n in range(20):
            await run.seen("ack", f"m{n}")
        assert (run.counters.running, run.broker.of("loop")) == (1, ["deliver"])

    async def test_a_state_lost_among_messages_that_arrived_together_costs_its_own_message_only(
        self, stage: Stage
    ):
        source = """
        local runs = 0
        function handle(b)
          runs = runs + 1
          if b.hog then local t = {} for i = 1, 1e8 do t[i] = ("x"):rep(1000) .. i end end
          log{n = b.n, runs = runs}
        end"""
        bodies = {"m0": {"n": 0}, "m1": {"n": 1}, "hog": {"hog": True}, "m2": {"n": 2}, "m3": {"n": 3}}
        run = await stage.start_on(bodies, source, memory_limit=8 * 1024 * 1024, retry=ONCE, concurrency=1)
        assert await stage.logged(4) == [
            {"n": 0, "runs": 1},
            {"n": 1, "runs": 2},
            {"n": 2, "runs": 1},
            {"n": 3, "runs": 2},
        ]
        dead = await stage.dead()
        assert [letter.properties.message_id for letter in dead] == ["hog"]
        await run.seen("ack", "m3")

    async def test_a_handler_out_of_memory_fails_alone_and_its_slot_goes_on(self, stage: Stage):
        source = """
        function handle(b)
          if b.hog then local t = {} for i = 1, 1e8 do t[i] = ("x"):rep(1000) .. i end end
          log{n = b.n}
        end"""
        await stage.start(source, memory_limit=8 * 1024 * 1024, retry=ONCE)
        await stage.send({"hog": True}, message_id="hog")
        await stage.send({"n": 1}, message_id="next")
        assert await stage.logged(1) == [{"n": 1}]
        assert "memory limit" in (await stage.dead())[0].properties.headers["x_error"]


class DrainScenarios:
    """Shutdown: nothing lost, nothing handled twice."""

    async def test_a_running_handler_finishes_and_is_acked_and_the_rest_is_handed_back(self, stage: Stage):
        source = "function handle(b) log{n = b.n}; gate() end"
        run = await stage.start(source, concurrency=1, prefetch=5)
        for n in range(8):
            await stage.send({"n": n}, message_id=f"m{n}")
        await stage.logged(1)
        await run.seen("deliver", "m4")
        draining = _in_background(run.app.drain())
        await run.seen("requeue", "m4")
        assert not run.app.ready
        assert run.broker.of("m0") == ["deliver"]
        await stage.open_gate()
        await draining
        assert run.broker.of("m0") == ["deliver", "ack"]
        await stage.holds("app:work", 7)
        await stage.start(source, concurrency=2, prefetch=3)
        records = await stage.logged(8)
        assert sorted(record["n"] for record in records) == list(range(8))

    async def test_a_retry_of_a_handler_that_fails_while_draining_is_confirmed_before_the_end(
        self, stage: Stage
    ):
        run = await stage.start("function handle(b) log{n = 1}; gate(); return nil, 'no' end", retry=ONCE)
        await stage.send()
        await stage.logged(1)
        run.broker.confirm_gate.clear()
        draining = _in_background(run.app.drain())
        await stage.open_gate()
        await run.seen("publish dead")
        assert not draining.done()
        run.broker.confirm_gate.set()
        await draining
        assert run.broker.of("m") == ["deliver", "publish dead", "confirm dead", "ack"]

    @pytest.mark.parametrize("where", ["gate()", "while true do end"])
    async def test_at_the_drain_deadline_a_handler_is_interrupted_and_no_attempt_is_counted(
        self, stage: Stage, where: str
    ):
        run = await stage.start(f"function handle(b) log{{n = 1}}; {where} end", drain_timeout=0.2)
        await stage.send(headers={"attempts": 1})
        await stage.logged(1)
        await run.app.drain()
        assert run.broker.of("m") == ["deliver", "requeue"]
        assert run.counters.failed == 0
        await stage.start("function handle(b) log{attempts = queue.message():header('attempts')} end")
        assert (await stage.logged(2))[1] == {"attempts": 1}

    async def test_a_drain_hands_back_what_has_not_started_while_lua_runs_and_then_interrupts_it(
        self, stage: Stage
    ):
        source = "function handle(b) if b.loop then while true do end end end"
        bodies = {"done": {"n": 0}, "loop": {"loop": True}} | {f"m{n}": {"n": n} for n in range(5)}
        run = await stage.start_on(bodies, source, concurrency=1, drain_timeout=1.0)
        await run.seen("ack", "done")
        draining = _in_background(run.app.drain())
        await run.seen("requeue", "m4")
        assert (run.counters.running, run.broker.of("loop")) == (1, ["deliver"])
        await draining
        assert run.broker.of("loop") == ["deliver", "requeue"]
        assert (run.counters.handled, run.counters.failed) == (1, 0)
        await stage.holds("app:work", 6)

    async def test_a_drain_under_load_loses_nothing_and_handles_nothing_twice(self, stage: Stage):
        source = "function handle(b) time.sleep('2ms'); log{n = b.n} end"
        run = await stage.start(source, concurrency=4, prefetch=20)
        for n in range(100):
            await stage.send({"n": n}, message_id=f"m{n}")
        await stage.logged(10)
        await run.app.drain()
        await stage.start(source, concurrency=4, prefetch=20)
        records = await stage.logged(100)
        assert sorted(record["n"] for record in records) == list(range(100))


class PermissionScenarios:
    """`queue.consume` is asked all the time."""

    async def test_a_withdrawn_right_stops_consuming_at_once_and_a_right_given_back_resumes(
        self, stage: Stage
    ):
        source = "function handle(b) log{n = b.n}; gate() end"
        run = await stage.start(source, concurrency=1, prefetch=3, policy=_ANYWHERE)
        for n in range(3):
            await stage.send({"n": n}, message_id=f"m{n}")
        await stage.logged(1)
        await run.seen("deliver", "m2")
        run.policies.change(Policy(publish=True, publish_to=("*:*",)))
        await run.seen("requeue", "m1")
        await run.seen("requeue", "m2")
        await run.until(lambda: not run.app.ready, "the consumer to be gone")
        await stage.open_gate()
        await run.seen("ack", "m0")
        await stage.holds("app:work", 2)
        assert len(await stage.logged(1)) == 1
        run.policies.change(_ANYWHERE)
        records = await stage.logged(3)
        assert sorted(record["n"] for record in records) == [0, 1, 2]
        await run.ready()

    async def test_a_right_withdrawn_while_lua_runs_hands_back_the_rest_before_it_ends(self, stage: Stage):
        source = "function handle(b) if b.loop then while true do end end end"
        bodies = {"loop": {"loop": True}} | {f"m{n}": {"n": n} for n in range(5)}
        run = await stage.start_on(bodies, source, concurrency=1, drain_timeout=0.2, policy=_ANYWHERE)
        await run.until(lambda: run.counters.running == 1, "the loop to run")
        await run.seen("deliver", "m4")
        run.policies.change(Policy())
        for n in range(5):
            await run.seen("requeue", f"m{n}")
        assert (run.counters.running, run.broker.of("loop")) == (1, ["deliver"])

    async def test_a_right_to_publish_withdrawn_while_a_handler_runs_is_gone_at_its_next_publish(
        self, stage: Stage
    ):
        source = """
        function handle(b)
          log{step = 1}
          gate()
          local ok, err = queue.publish("app:log", {step = 2})
          return nil, errors.new(tostring(ok) .. "|" .. (err and err:message() or ""))
        end"""
        run = await stage.start(source, policy=_ANYWHERE, retry=ONCE)
        await stage.send()
        await stage.logged(1)
        run.policies.change(Policy(publish=True, publish_to=("app:gate",), consume=("*:*",)))
        await stage.open_gate()
        headers = (await stage.dead())[0].properties.headers
        assert headers["x_error"] == "nil|not allowed to publish to queue: app:log"
        assert await stage.logged(1) == [{"step": 1}]

    async def test_without_the_right_nothing_is_consumed(self, stage: Stage):
        run = await stage.prepare("function handle(b) log{n = b.n} end", policy=Policy())
        await run.app.start()
        await run.until(lambda: bool(run.app._workers), "the worker to be started, its queue declared")
        await stage.send({"n": 1})
        assert not run.app.ready
        assert ("consume", "") not in run.broker.events
        run.policies.change(_ANYWHERE)
        assert await stage.logged(1) == [{"n": 1}]


class SuspectScenarios:
    """Messages that kill their process."""

    SOURCE = "function handle(b) log{n = b.n, suspect = queue.message():header('x_suspect')}; gate() end"

    async def test_a_suspect_waits_for_the_others_and_runs_with_nothing_else_unacknowledged(
        self, stage: Stage
    ):
        run = await stage.start(self.SOURCE, concurrency=3, prefetch=10)
        await stage.send({"n": 1}, message_id="innocent")
        await stage.logged(1)
        await stage.send({"n": 2}, message_id="killer", headers={"x_suspect": True})
        await run.seen("deliver", "killer")
        await run.until(lambda: ("cancel", "") in run.broker.events, "no more messages to be taken")
        await stage.send({"n": 3}, message_id="later")
        assert await stage.logged(1) == [{"n": 1}]
        await stage.open_gate()
        assert [record["n"] for record in await stage.logged(3)] == [1, 2, 3]
        await run.seen("ack", "later")
        order = [identity for what, identity in run.broker.events if what in ("ack", "deliver")]
        assert order.index("killer") < order.index("later")
        settled = [identity for what, identity in run.broker.events if what == "ack"]
        assert settled == ["innocent", "killer", "later"]

    async def test_a_suspect_whose_process_died_counts_one_attempt(self, stage: Stage):
        run = await stage.start(self.SOURCE)
        await stage.send({"n": 1}, headers={"x_suspect": True, "attempts": 1})
        await stage.logged(1)
        await stage.crash(run)
        again = await stage.start(self.SOURCE)
        dead_or_retried = await _seen_any(again, "publish 20", "publish dead")
        assert dead_or_retried == "publish 20"
        await stage.logged(2)
        await stage.open_gate()
        await again.seen("ack", times=2)
        assert again.counters.retried == 1

    async def test_a_message_returned_too_often_becomes_a_suspect_without_counting_an_attempt(
        self, stage: Stage
    ):
        source = """
        function handle(b)
          local m = queue.message()
          log{suspect = m:header("x_suspect") or false, attempts = m:header("attempts")}
          gate()
        end"""
        for deaths in range(4):
            run = await stage.start(source)
            if deaths == 0:
                await stage.send()
            await stage.logged(deaths + 1)
            await stage.crash(run)
        run = await stage.start(source)
        records = await stage.logged(5)
        assert records == [{"suspect": False, "attempts": 0}] * 4 + [{"suspect": True, "attempts": 0}]
        assert run.broker.of("m")[:4] == ["deliver", "publish 20", "confirm 20", "ack"]
        await stage.open_gate()
        await run.seen("ack", times=2)
        assert (run.counters.suspected, run.counters.retried) == (1, 0)


async def _seen_any(run: Running, *whats: str) -> str:
    await run.until(lambda: any(what in run.broker.of("m") for what in whats), f"one of {whats}")
    return next(what for what in whats if what in run.broker.of("m"))


def _in_background(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.create_task(work)
