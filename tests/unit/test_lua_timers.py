"""time.after, time.timer, time.ticker and time.sleep among coroutines: lua-api.md 3.3."""

from __future__ import annotations

import pytest
from lua_concurrent import EPOCH, Stage, done, failure, stage
from lua_driver import load

from lunaq_runtime.lua.errors import HandlerLoadError
from lunaq_runtime.lua.requests import Finished, Sleep


@pytest.mark.parametrize("duration", ["'1s'", "1000000000", "time.SECOND", "time.parse_duration('1s')"])
def test_after_delivers_one_time_once_it_has_passed(duration: str):
    assert done(f"""
        local ch, err = time.after({duration})
        local t, ok = ch:receive()
        at(tostring(t:unix()) .. " " .. tostring(ok) .. " " .. tostring(err))
        print(channel.select{{ch:case_receive(), default = true}}.default)
    """) == [f"1.0 {EPOCH + 1} true nil", "true"]


@pytest.mark.parametrize("function", ["after", "timer", "ticker"])
@pytest.mark.parametrize(
    ("duration", "reason"),
    [("0", "above 0"), ("-1", "above 0"), ("'soon'", "invalid duration: soon"), ("nil", "duration expected")],
)
def test_a_duration_that_is_none_or_not_above_zero_is_invalid(function: str, duration: str, reason: str):
    (line,) = done(f"local v, err = time.{function}({duration}) print(v, err:kind(), err)")
    assert line.startswith("nil Invalid ")
    assert reason in line


def test_there_are_no_timers_before_there_is_a_message():
    with pytest.raises(HandlerLoadError, match="no context"):
        load("assert(time.after('1s')) function handle() end")


def test_a_timeout_in_select_costs_nothing_once_the_other_case_came_first():
    running = stage("""
        local ch = channel.new()
        coroutine.spawn(function() time.sleep("1s") ch:send("v") end)
        local r = channel.select{ch:case_receive(), time.after("1h"):case_receive()}
        at(r.value)
        time.sleep("1s")
    """)
    assert running.run() == Finished()
    assert running.printed == ["1.0 v"]
    assert running.requests == [Sleep(1.0), Sleep(1.0)]


def test_a_timeout_in_select_ends_the_wait():
    assert done("""
        local timeout = time.after("3s")
        local r = channel.select{channel.new():case_receive(), timeout:case_receive()}
        at(tostring(r.channel == timeout) .. " " .. tostring(r.ok))
    """) == ["3.0 true true"]


def test_the_time_is_when_it_was_due_and_not_when_it_was_received():
    assert done(f"""
        local ch = time.after("1s")
        time.sleep("5s")
        at(ch:receive():unix() - {EPOCH})
    """) == ["5.0 1"]


def test_several_timers_ring_in_their_order():
    assert done("""
        local chans = {}
        for i, s in ipairs{3, 1, 2} do chans[i] = time.after(s * time.SECOND) end
        for _ = 1, 3 do
          local r = channel.select{
            chans[1]:case_receive(), chans[2]:case_receive(), chans[3]:case_receive()}
          for i, ch in ipairs(chans) do if ch == r.channel then at(i) end end
        end
    """) == ["1.0 2", "2.0 3", "3.0 1"]


def test_a_timer_has_two_names_for_its_channel():
    assert done("local t = time.timer('1s') print(t:response() == t:channel())") == ["true"]


def test_stop_tells_whether_the_timer_had_still_to_be_received():
    assert done("""
        local t = time.timer("1s")
        print(t:stop(), t:stop())
        t = time.timer("1s")
        t:channel():receive()
        print(t:stop())
        t = time.timer("1s")
        time.sleep("2s")
        print(t:stop(), channel.select{t:channel():case_receive(), default = true}.default)
    """) == ["true false", "false", "true true"]


def test_a_stopped_timer_wakes_nobody():
    assert failure("""
        local t = time.timer("1s")
        coroutine.spawn(function() t:stop() end)
        t:channel():receive()
    """).startswith("deadlock")


def test_reset_sets_a_timer_anew_also_while_somebody_waits():
    assert done("""
        local t = time.timer("1s")
        coroutine.spawn(function() print(t:reset("5s")) end)
        t:channel():receive()
        at("received")
        print(t:reset("1s"))
        t:channel():receive()
        at("again")
    """) == ["true", "5.0 received", "false", "6.0 again"]


def test_reset_to_an_earlier_time_wakes_who_waits_earlier():
    assert done("""
        local t = time.timer("1h")
        coroutine.spawn(function() t:reset("1s") end)
        t:channel():receive()
        at("received")
    """) == ["1.0 received"]


@pytest.mark.parametrize("duration", ["0", "-1", "'soon'", "nil", "{}"])
def test_reset_raises_for_a_bad_duration(duration: str):
    assert "bad argument #1 to 'reset'" in failure(f"time.timer('1s'):reset({duration})")


def test_a_ticker_delivers_every_so_often_until_it_is_stopped():
    assert done("""
        local t = time.ticker("2s")
        for i = 1, 3 do t:response():receive() at(i) end
        print(select("#", t:stop()))
        time.sleep("10s")
        print(channel.select{t:channel():case_receive(), default = true}.default)
    """) == ["2.0 1", "4.0 2", "6.0 3", "0", "true"]


def test_a_ticker_drops_what_nobody_received_and_keeps_its_beat():
    assert done("""
        local t = time.ticker("2s")
        time.sleep("7s")
        t:channel():receive() at("late")
        t:channel():receive() at("in time")
    """) == ["7.0 late", "8.0 in time"]


def test_several_receivers_share_a_ticker():
    assert done("""
        local t = time.ticker("1s")
        for i = 1, 2 do coroutine.spawn(function() t:channel():receive() at(i) end) end
        time.sleep("5s")
    """) == ["1.0 1", "2.0 2"]


@pytest.mark.parametrize("call", ["t.stop()", "t.channel({})", "t.response(time.ticker(1))"])
def test_a_method_of_a_timer_needs_its_timer(call: str):
    assert "is called with a colon" in failure(f"local t = time.timer('1s') {call}")


def test_a_timer_ends_with_its_message_and_can_be_set_again_for_the_next():
    running = Stage("""
    local timer, ticker
    function handle(n)
      if n == 1 then
        timer, ticker = time.timer("1s"), time.ticker("1s")
      elseif n == 2 then
        time.sleep("5s")
        for _, ch in ipairs{timer:channel(), ticker:channel()} do
          print(channel.select{ch:case_receive(), default = true}.default)
        end
        print(timer:reset("1s"))
        print(timer:channel():receive():unix())
      end
    end
    """)
    assert running.run(1) == Finished()
    assert running.run(2) == Finished()
    assert running.printed == ["true", "true", "false", str(EPOCH + 6)]


def test_a_receiver_that_waits_for_an_earlier_messages_timer_is_not_woken_by_it():
    running = Stage("""
    local kept
    function handle(n)
      if n == 1 then
        kept = time.after("1s")
        coroutine.spawn(function() kept:receive() print("never") end)
        time.sleep("1ms")
      else
        kept:receive()
      end
    end
    """)
    assert running.run(1) == Finished()
    error = running.run(2).error
    assert error is not None
    assert error.text.startswith("deadlock")
    assert running.printed == []


def test_waiting_with_a_timeout_ten_thousand_times_leaves_nothing_behind():
    running = Stage(
        """
    function handle()
      local ch = channel.new(1)
      for i = 1, 10000 do
        ch:send(i)
        channel.select{ch:case_receive(), time.after("1h"):case_receive()}
      end
    end
    """,
        memory_limit=2 * 1024 * 1024,
    )
    assert running.run() == Finished()
    assert running.requests == []
