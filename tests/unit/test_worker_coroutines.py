"""Several coroutines of one handler through the worker, on the memory broker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from lunaq_runtime.entries.model import Retry

if TYPE_CHECKING:
    from harness.worker_stage import Running, Stage
    from lunaq_runtime.message import Outgoing

ONCE = Retry(max_attempts=1, delays_ms=(20,))


class SlowRequests:
    """Holds each publish to `app:log` and each look at it until released; counts what became of them."""

    def __init__(self, run: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = self.ended = self.cancelled = 0
        self.release = asyncio.Event()
        inner: Any = run.broker.inner
        publish, queue_info = inner.publish, inner.queue_info

        async def slow_publish(message: Outgoing, **options: Any) -> None:
            if message.exchange == "app:log.x":
                await self._hold()
            await publish(message, **options)

        async def slow_info(name: str) -> Any:
            if name == "app:log":
                await self._hold()
            return await queue_info(name)

        monkeypatch.setattr(inner, "publish", slow_publish)
        monkeypatch.setattr(inner, "queue_info", slow_info)

    async def _hold(self) -> None:
        self.begun += 1
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.ended += 1


async def test_publishes_of_two_coroutines_overlap_each_other_and_a_sleep(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    run = await stage.start("""
    function handle()
      local results = channel.new()
      for i = 1, 2 do
        coroutine.spawn(function() log{n = i} results:send(i) end)
      end
      time.sleep("1ms")
      results:receive() results:receive()
    end""")
    slow = SlowRequests(run, monkeypatch)
    await stage.send()
    await run.until(lambda: slow.begun == 2, "two publishes to be under way")
    assert slow.ended == 0
    slow.release.set()
    await run.seen("ack")
    assert sorted(entry["n"] for entry in await stage.logged(2)) == [1, 2]


async def test_coroutines_are_killed_when_the_handler_returns_and_their_requests_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    run = await stage.start("""
    function handle(body)
      if body.n == 1 then
        coroutine.spawn(function() queue.info("app:log") log{never = true} end)
        coroutine.spawn(function() time.sleep("1h") log{never = true} end)
        time.sleep("10ms")
      else
        log{second = true}
      end
    end""")
    slow = SlowRequests(run, monkeypatch)
    await stage.send({"n": 1})
    await run.seen("ack")
    await run.until(lambda: slow.cancelled == 1, "the look to be cancelled")
    slow.release.set()
    await stage.send({"n": 2}, message_id="second")
    assert await stage.logged(1) == [{"second": True}]


async def test_a_deadlock_fails_the_message_with_a_clear_error(stage: Stage):
    run = await stage.start("function handle()\n channel.new():receive() end", retry=ONCE)
    await stage.send()
    headers = (await stage.dead())[0].properties.headers
    assert headers["x_error"].startswith("deadlock: the handler waits at handler.lua:")
    assert headers["x_error_kind"] == "Internal"
    await run.seen("ack")


async def test_an_error_of_a_spawned_coroutine_fails_the_message(stage: Stage):
    run = await stage.start(
        """
    function handle()
      coroutine.spawn(function() error(errors.new{message = "no", kind = errors.CONFLICT}) end)
      time.sleep("1h")
    end""",
        retry=ONCE,
    )
    await stage.send()
    headers = (await stage.dead())[0].properties.headers
    assert (headers["x_error"], headers["x_error_kind"]) == ("no", "Conflict")
    await run.seen("ack")


async def test_the_time_limit_ends_a_hundred_coroutines_and_what_they_wait_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    run = await stage.start(
        """
    function handle()
      for i = 1, 50 do
        coroutine.spawn(function() queue.info("app:log") end)
        coroutine.spawn(function() time.sleep("1h") end)
      end
      channel.new():receive()
    end""",
        retry=ONCE,
        timeout=1.0,
    )
    slow = SlowRequests(run, monkeypatch)
    await stage.send()
    headers = (await stage.dead())[0].properties.headers
    assert headers["x_error_kind"] == "Timeout"
    assert slow.begun == 50
    await run.until(lambda: slow.cancelled == 50, "all looks to be cancelled")
    await run.seen("ack")


async def test_a_ticker_stops_with_its_message(stage: Stage):
    run = await stage.start("""
    local ticker
    function handle(body)
      if body.n == 1 then
        ticker = time.ticker("1ms")
        log{first = ticker:response():receive() ~= nil}
      else
        time.sleep("20ms")
        log{second = channel.select{ticker:response():case_receive(), default = true}.default}
      end
    end""")
    await stage.send({"n": 1})
    assert await stage.logged(1) == [{"first": True}]
    await run.seen("ack")
    await stage.send({"n": 2})
    assert (await stage.logged(2))[1] == {"second": True}


@pytest.mark.parametrize(
    ("settle", "events"),
    [("ack", ["deliver", "ack"]), ("nack", ["deliver", "publish dead", "confirm dead", "ack"])],
)
async def test_a_message_settled_by_a_spawned_coroutine_is_settled_once_whatever_the_handler_does_next(
    stage: Stage, settle: str, events: list[str]
):
    run = await stage.start(
        f"""
    function handle()
      local over = channel.new()
      coroutine.spawn(function() queue.info("app:log") end)
      coroutine.spawn(function() queue.message():{settle}() end)
      coroutine.spawn(function() over:send(true) end)
      over:receive()
      return nil, "failed all the same"
    end""",
        retry=ONCE,
    )
    await stage.send()
    await run.seen("ack")
    await run.app.drain()
    assert run.broker.of("m") == events


async def test_two_handlers_with_many_coroutines_do_not_mix(stage: Stage):
    run = await stage.start(
        """
    function handle(body)
      local results, sum = channel.new(), 0
      for i = 1, 20 do
        coroutine.spawn(function()
          time.sleep(i % 3 .. "ms")
          local info = queue.info("app:gate")
          results:send(body.n + info.ready)
        end)
      end
      for i = 1, 20 do sum = sum + results:receive() end
      log{n = body.n, sum = sum}
    end""",
        concurrency=4,
    )
    for n in range(1, 13):
        await stage.send({"n": n}, message_id=str(n))
    assert {entry["n"]: entry["sum"] for entry in await stage.logged(12)} == {n: 20 * n for n in range(1, 13)}
    for n in range(1, 13):
        await run.seen("ack", str(n))


async def test_a_shutdown_interrupts_coroutines_that_wait_and_hands_the_message_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    run = await stage.start(
        """
    function handle()
      coroutine.spawn(function() queue.info("app:log") end)
      coroutine.spawn(function() time.sleep("1h") end)
      channel.new():receive()
    end""",
        drain_timeout=0.1,
    )
    slow = SlowRequests(run, monkeypatch)
    await stage.send()
    await run.until(lambda: slow.begun == 1, "the look to be under way")
    await run.app.drain()
    assert run.broker.of("m") == ["deliver", "requeue"]
    assert slow.cancelled == 1
