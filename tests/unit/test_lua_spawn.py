"""coroutine.spawn, and several coroutines of one handler: who goes on, what ends them, what limits them."""

from __future__ import annotations

import pytest
from lua_concurrent import Stage, done, failure, stage
from lua_driver import FakeHost, load, run

from lunaq_runtime.lua.errors import CANCELED, TIMEOUT, HandlerError, HandlerLoadError
from lunaq_runtime.lua.requests import Finished, Info, Publish, Settle, Sleep, Wait
from lunaq_runtime.lua.state import MessageContext

LIMIT = 0.1


# Starting -------------------------------------------------------------------------------------------------


def test_spawn_returns_a_thread_that_runs_once_its_maker_waits():
    assert done("""
        local thread = coroutine.spawn(function(...) print("spawned", ...) end, 1, "x")
        print(type(thread), coroutine.status(thread))
        time.sleep("1ms")
        print(coroutine.status(thread))
    """) == ["thread suspended", "spawned 1 x", "dead"]


def test_spawned_coroutines_start_in_their_order_and_may_spawn_themselves():
    assert done("""
        for i = 1, 3 do
          coroutine.spawn(function()
            print(i)
            coroutine.spawn(function() print(i .. i) end)
          end)
        end
        time.sleep("1ms")
    """) == ["1", "2", "3", "11", "22", "33"]


@pytest.mark.parametrize("value", ["nil", "1", "'x'", "{}"])
def test_only_a_function_can_be_spawned(value: str):
    assert "bad argument #1 to 'spawn' (function expected" in failure(f"coroutine.spawn({value})")


def test_nothing_is_spawned_before_there_is_a_message():
    with pytest.raises(HandlerLoadError, match="there is no message yet"):
        load("coroutine.spawn(print) function handle() end")


# Overlapping ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["1", "{n = 1}"])
def test_a_publish_in_one_coroutine_overlaps_the_sleep_of_another(value: str):
    running = stage(f"""
        coroutine.spawn(function() at(tostring(queue.publish("app:q", {value})) .. " published") end)
        time.sleep("1500ms")
        at("slept")
    """)
    assert running.run() == Finished()
    assert running.printed == ["1.0 true published", "1.5 slept"]
    assert [type(request) for request in running.requests] == [Wait, Sleep]


def test_requests_of_several_coroutines_are_outstanding_at_the_same_time():
    running = stage(
        """
        local results = channel.new()
        for i = 1, 5 do
          coroutine.spawn(function() results:send{queue.info("app:q" .. i), i} end)
        end
        for _ = 1, 5 do
          local r = results:receive()
          at(r[2] .. " " .. r[1].ready)
        end
    """,
        cost=lambda request: {"app:q1": 3.0, "app:q2": 1.0, "app:q3": 2.0}.get(request.queue_id, 2.5),
        reply=lambda request: ({"ready": int(request.queue_id[-1]) * 10}, None),
    )
    assert running.run() == Finished()
    assert running.printed == ["1.0 2 20", "2.0 3 30", "2.5 4 40", "2.5 5 50", "3.0 1 10"]


def test_a_handler_that_is_alone_asks_for_one_thing_after_the_other():
    requests = run(
        "local ch = channel.new(1) ch:send(1) queue.publish('app:a', ch:receive()) time.sleep('1s')"
        " queue.message():ack() queue.info('app:a')"
    ).requests
    assert [type(request) for request in requests] == [Publish, Sleep, Settle, Info]


def test_a_handler_whose_other_coroutines_only_wait_for_it_is_asked_for_directly():
    running = stage("""
        local ch = channel.new()
        coroutine.spawn(function() ch:receive() end)
        time.sleep("1ms")
        queue.publish("app:a", 1)
    """)
    assert running.run() == Finished()
    assert [type(request) for request in running.requests] == [Sleep, Publish]


def test_each_coroutine_gets_the_reply_to_its_own_request_in_several_values():
    refused = HandlerError("queue not found", "Internal", retryable=True)
    assert done(
        """
        for i = 1, 2 do
          coroutine.spawn(function()
            local ok, err = queue.publish("app:q" .. i, 1)
            print(i, ok, err, err and err:retryable())
          end)
        end
        time.sleep("5s")
    """,
        reply=lambda request: (True, None) if request.queue_id == "app:q1" else (None, refused),
    ) == ["1 true nil nil", "2 nil queue not found true"]


def test_a_request_that_is_refused_at_once_holds_nobody_up():
    assert (
        done("""
        coroutine.spawn(function() time.sleep("1s") end)
        coroutine.spawn(function() queue.publish("app:q", 1) end)
        local ok, err = queue.publish("", 1)
        at(tostring(err))
        print(pcall(queue.publish, {}, 1))
    """)[0]
        == "0.0 queue ID required"
    )


def test_a_large_value_published_by_one_coroutine_is_not_mixed_up_with_anothers():
    running = stage(
        """
        for i = 1, 3 do
          coroutine.spawn(function()
            local list = {}
            for j = 1, 1000 do list[j] = i end
            queue.publish("app:q" .. i, list)
          end)
        end
        time.sleep("5s")
    """
    )
    seen: dict[str, list[int]] = {}

    def reply(request: Publish) -> tuple[bool, None]:
        seen[request.queue_id] = request.value
        return True, None

    running._reply = reply
    assert running.run() == Finished()
    assert seen == {f"app:q{i}": [i] * 1000 for i in (1, 2, 3)}


def test_replies_get_in_between_coroutines_that_are_never_all_blocked():
    state = load("""
    function handle()
      local a, stop = channel.new(), false
      coroutine.spawn(function() queue.publish("app:q", 1) stop = true end)
      coroutine.spawn(function() while not stop do a:send(1) end a:close() end)
      local _, ok
      repeat _, ok = a:receive() until not ok
    end
    """)
    invocation = state.start(MessageContext("1"), None)
    wait = invocation.step()
    assert isinstance(wait, Wait)
    assert wait.seconds == 0
    (tag,) = wait.outstanding.new
    assert invocation.step(((tag, (True, None)),)) == Finished()


def test_sleepers_wake_in_the_order_of_their_times():
    assert done("""
        for _, ms in ipairs{30, 10, 20, 40, 5, 10} do
          coroutine.spawn(function() time.sleep(ms * time.MILLISECOND) at(ms) end)
        end
        time.sleep("1s")
    """) == ["0.005 5", "0.01 10", "0.01 10", "0.02 20", "0.03 30", "0.04 40"]


def test_a_sleep_of_centuries_is_no_short_one():
    assert done("""
        coroutine.spawn(function() time.sleep(math.maxinteger) print("woken") end)
        time.sleep("1000h")
        at("slept")
    """) == ["3600000.0 slept"]


# Ending ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "text"), [("return true", None), ("return nil, 'no'", "no"), ("error('no', 0)", "no")]
)
def test_spawned_coroutines_are_killed_when_the_handler_returns_or_raises(end: str, text: str | None):
    running = stage(f"""
        for i = 1, 3 do
          coroutine.spawn(function() time.sleep("2s") print("never") end)
          coroutine.spawn(function() queue.publish("app:q", 1) time.sleep("1s") print("never") end)
        end
        time.sleep("1s")
        coroutine.spawn(function() print("never") end)
        {end}
    """)
    error = running.run().error
    assert (error.text if error else None) == text
    assert running.printed == []


def test_what_still_goes_on_is_closed_at_the_end():
    state = load(
        "function handle() coroutine.spawn(function() queue.publish('app:q', 1) end) time.sleep('1s') end"
    )
    invocation = state.start(MessageContext("1"), None)
    wait = invocation.step()
    assert isinstance(wait, Wait)
    closed = []
    wait.outstanding.close = lambda: closed.append(True)
    invocation.abort(HandlerError("shutdown", CANCELED))
    assert closed == [True]


def test_an_uncaught_error_in_a_spawned_coroutine_ends_the_invocation_with_it():
    running = stage("""
        coroutine.spawn(function()
          time.sleep("1s")
          local kind = errors.UNAVAILABLE
          error(errors.new{message = "smtp is down", kind = kind, retryable = true, details = {a = 1}})
        end)
        time.sleep("1h")
        print("never")
    """)
    error = running.run().error
    assert error is not None
    assert (error.text, error.kind_value, error.is_retryable, error.detail_values) == (
        "smtp is down",
        "Unavailable",
        True,
        {"a": 1},
    )
    assert running.clock.now == 1.0
    assert running.printed == []


def test_a_text_raised_in_a_spawned_coroutine_carries_position_and_frames():
    error = stage("\ncoroutine.spawn(function()\nerror('boom') end) time.sleep('1s')").run().error
    assert error is not None
    assert error.text == "app.lua:3: boom"
    assert any("app.lua:3" in frame for frame in error.frames)


def test_an_error_that_a_spawned_coroutine_catches_ends_nothing():
    assert done("""
        coroutine.spawn(function() print(pcall(error, "caught", 0)) end)
        time.sleep("1s")
    """) == ["false caught"]


def test_what_a_spawned_coroutine_returns_does_not_matter():
    assert done("coroutine.spawn(function() return nil, 'no' end) time.sleep('1s') return true") == []


def test_a_message_is_acked_from_a_spawned_coroutine_and_released_with_the_handler():
    running = Stage("""
    local kept
    function handle(first)
      if first then
        coroutine.spawn(function()
          kept = queue.message()
          print(kept:id(), kept:ack())
        end)
        time.sleep("5s")
      else
        print(kept:id())
      end
    end
    """)
    assert running.run(True).settled == "ack"
    running.run(False)
    assert running.printed == ["id-1 true nil", "nil queue.Message released"]


# Plain coroutines -----------------------------------------------------------------------------------------


def test_a_blocking_call_in_a_plain_coroutine_suspends_the_chain_of_its_own_task_only():
    assert done("""
        coroutine.spawn(function()
          local co = coroutine.wrap(function()
            local inner = coroutine.wrap(function()
              time.sleep("1s")
              coroutine.yield("inner")
              queue.publish("app:q", 1)
              return "done"
            end)
            coroutine.yield(inner())
            coroutine.yield(inner())
          end)
          at(co()) at(co())
        end)
        time.sleep("500ms") at("main")
        time.sleep("5s")
    """) == ["0.5 main", "1.0 inner", "2.0 done"]


def test_a_plain_coroutine_receives_and_sends():
    assert done("""
        local ch = channel.new()
        local producer = coroutine.wrap(function() for i = 1, 3 do ch:send(i) coroutine.yield(i * 10) end end)
        coroutine.spawn(function() for i = 1, 3 do print("got", (ch:receive())) end end)
        for i = 1, 3 do print("yielded", producer()) end
        time.sleep("1ms")
    """) == ["got 1", "yielded 10", "yielded 20", "got 2", "got 3", "yielded 30"]


def test_a_channel_wait_inside_pcall_gets_its_value():
    assert done("""
        local ch = channel.new()
        coroutine.spawn(function() time.sleep("1s") ch:send("v") end)
        print(pcall(function() local v = ch:receive() error(v, 0) end))
    """) == ["false v"]


@pytest.mark.parametrize("place", ["", "coroutine.spawn(function() "])
def test_the_outermost_coroutine_cannot_yield_by_hand(place: str):
    end = " end) time.sleep('1s')" if place else ""
    assert "attempt to yield from outside a coroutine" in failure(f"{place}coroutine.yield(1){end}")


def test_nobody_resumes_or_closes_a_coroutine_that_is_not_his():
    assert done("""
        local main = coroutine.running()
        local waiting = coroutine.create(function() time.sleep("1s") print("woken") end)
        local spawned = coroutine.spawn(function() time.sleep("1s") print("spawned") end)
        coroutine.spawn(function()
          for _, thread in ipairs{main, waiting, spawned} do
            local ok, why = coroutine.resume(thread)
            print(ok, why:match("^cannot resume a coroutine that waits") ~= nil)
            ok, why = pcall(coroutine.close, thread)
            print(why:match("cannot close a coroutine that waits") ~= nil)
          end
        end)
        coroutine.resume(waiting)
        time.sleep("2s")
        print(coroutine.resume(spawned))
        print(coroutine.close(spawned))
    """) == ["false true", "true"] * 3 + ["woken", "spawned", "false cannot resume dead coroutine", "true"]


# Limits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "coroutine.spawn(function() while true do end end) time.sleep('1ms')",
        (
            "coroutine.spawn(function() while true do pcall(function() while true do end end) end end)"
            " time.sleep('1ms')"
        ),
        "local function f() coroutine.spawn(f) end f() channel.new():receive()",
        "local function f() coroutine.spawn(f) coroutine.spawn(f) end f() channel.new():receive()",
        (
            "local a = channel.new() coroutine.spawn(function() while true do a:send(1) end end)"
            " while true do a:receive() end"
        ),
        (
            "local a = channel.new() coroutine.spawn(function() while true do pcall(a.send, a) end end)"
            " while true do pcall(a.receive, a) end"
        ),
        "local a = channel.new() a:close() while true do channel.select{a:case_receive()} end",
        "while true do pcall(coroutine.spawn, function() end) end",
        "for i = 1, 100 do coroutine.spawn(function() while 1 do pcall(error) end end) end time.sleep('1s')",
        (
            "coroutine.spawn(function() local co = coroutine.wrap(function() while 1 do end end) co() end)"
            " time.sleep('1ms')"
        ),
    ],
)
def test_no_coroutine_survives_the_time_limit(source: str):
    finished = run(source, timeout=LIMIT, memory_limit=1024 * 1024 * 1024).finished
    assert finished.error is not None
    assert finished.error.kind_value == TIMEOUT


def test_an_interrupt_ends_coroutines_that_wait():
    state = load("function handle() coroutine.spawn(function() time.sleep('1h') end) time.sleep('1h') end")
    invocation = state.start(MessageContext("1"), None)
    assert isinstance(invocation.step(), Sleep)
    invocation.interrupt(HandlerError("shutdown", CANCELED))
    finished = invocation.step(())
    assert isinstance(finished, Finished)
    assert finished.error is not None
    assert finished.error.text == "shutdown"
    assert not finished.state_lost


@pytest.mark.parametrize(
    "source",
    [
        (
            "coroutine.spawn(function() local t = {} while true do t[#t + 1] = ('x'):rep(1e5) .. #t end end)"
            " time.sleep('1s')"
        ),
        "coroutine.spawn(function() while true do pcall(string.rep, 'x', 1e9) end end) time.sleep('1s')",
        "while true do coroutine.spawn(function() end) end",
        "local c = channel.new(1e9) while true do c:send({}) end",
        "local c, t = channel.new(), {} for i = 1, 1e9 do t[i] = c:case_receive() end",
        "while true do coroutine.spawn(function() time.sleep('1h') end) time.sleep('1us') end",
        "local keep = {} while true do keep[#keep + 1] = time.after('1h') end",
    ],
)
def test_a_memory_bomb_of_coroutines_or_channels_is_contained(source: str):
    finished = run(source, memory_limit=4 * 1024 * 1024, replies=[()] * 1_000_000, timeout=30.0).finished
    assert finished.error is not None
    assert "memory limit of 4194304 bytes" in finished.error.text
    assert finished.state_lost


def test_hundreds_of_coroutines_per_message_leave_nothing_behind():
    running = Stage("""
    function handle()
      local results = channel.new()
      for i = 1, 300 do
        coroutine.spawn(function() time.sleep(i * time.MILLISECOND) results:send(i) end)
        coroutine.spawn(function() channel.new():receive() end)
        coroutine.spawn(function() time.sleep("1h") end)
      end
      for i = 1, 300 do results:receive() end
    end
    """)
    assert running.run() == Finished()
    memory = running.state.memory._used
    peak = []
    for _ in range(12):
        assert running.run() == Finished()
        peak.append(memory())
    assert min(peak[6:]) <= max(peak[:6])


def test_a_printed_record_of_a_spawned_coroutine_belongs_to_the_message():
    host = FakeHost()
    state = load(
        "function handle() coroutine.spawn(function() print('x') end) time.sleep('1h') end", host=host
    )
    invocation = state.start(MessageContext("id-9"), None)
    assert isinstance(invocation.step(), Sleep)
    assert host.records[0][2]["message_id"] == "id-9"


# What requests take while they are carried out -------------------------------------------------------------

MEBIBYTE = 1024 * 1024
PUBLISHES_AT_ONCE = """
    local text = ("x"):rep(1024 * 1024)
    for _ = 1, body do
      coroutine.spawn(function() queue.publish("app:q", text) end)
    end
    time.sleep("2s")
    print("done")
"""


def test_what_is_being_published_counts_for_the_memory_limit_of_its_handler():
    finished = stage(PUBLISHES_AT_ONCE, memory_limit=8 * MEBIBYTE).run(20)
    assert finished.error is not None
    assert "memory limit" in finished.error.text
    assert finished.state_lost


def test_endless_requests_without_a_body_meet_the_memory_limit_too():
    endless = 'for _ = 1, 5000 do coroutine.spawn(function() queue.info("app:q") end) end time.sleep("2s")'
    error = stage(endless, memory_limit=16 * MEBIBYTE).run().error
    assert error is not None
    assert "memory limit" in error.text


def test_what_has_been_published_counts_no_more():
    running = stage(PUBLISHES_AT_ONCE, memory_limit=8 * MEBIBYTE)
    for _ in range(4):
        assert running.run(4) == Finished()
    assert running.printed == ["done"] * 4


def test_what_was_still_being_published_at_a_handlers_end_counts_no_more():
    source = PUBLISHES_AT_ONCE.replace('"2s"', '"1ms"')
    running = stage(source, memory_limit=8 * MEBIBYTE)
    for _ in range(4):
        assert running.run(4) == Finished()
    assert running.printed == ["done"] * 4
