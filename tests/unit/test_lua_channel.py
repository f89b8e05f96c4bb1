"""Channels and select: every row of lua-api.md 3.4, on a clock that only waiting moves."""

from __future__ import annotations

import pytest
from lua_concurrent import Stage, done, failure, stage
from lua_driver import load, run

from lunaq_runtime.lua.errors import HandlerLoadError
from lunaq_runtime.lua.requests import Finished

SPAWN = "local spawn, new = coroutine.spawn, channel.new\n"


def printed(source: str) -> list[str]:
    return done(SPAWN + source)


# send, receive --------------------------------------------------------------------------------------------


def test_a_rendezvous_makes_the_sender_wait_until_its_value_is_received():
    assert printed("""
        local ch = new()
        spawn(function() at("send") at(tostring(ch:send("v")) .. " sent") end)
        time.sleep("2s")
        at("receive")
        print(ch:receive())
        time.sleep("1ms")
    """) == ["0.0 send", "2.0 receive", "v true", "2.0 true sent"]


def test_a_receiver_waits_until_something_is_sent():
    assert printed("""
        local ch = new()
        spawn(function() time.sleep("1s") ch:send("v") end)
        print(ch:receive())
        at("received")
    """) == ["v true", "1.0 received"]


def test_a_buffer_takes_as_many_values_as_its_size_without_waiting():
    assert printed("""
        local ch = new(2)
        spawn(function()
          for i = 1, 4 do ch:send(i) at("sent " .. i) end
        end)
        time.sleep("1s")
        print(ch:receive(), ch:receive())
        time.sleep("1s")
        print((ch:receive()), (ch:receive()))
    """) == ["0.0 sent 1", "0.0 sent 2", "1 2 true", "1.0 sent 3", "1.0 sent 4", "3 4"]


def test_values_come_in_the_order_in_which_they_were_sent():
    assert printed("""
        local ch, got = new(1), {}
        for i = 1, 5 do spawn(function() ch:send(i) end) end
        for i = 1, 5 do got[i] = ch:receive() end
        print(table.concat(got, " "))
    """) == ["1 2 3 4 5"]


def test_receivers_are_served_in_the_order_in_which_they_came():
    assert printed("""
        local ch = new()
        for i = 1, 3 do spawn(function() print(i, (ch:receive())) end) end
        time.sleep("1ms")
        for _, v in ipairs{"a", "b", "c"} do ch:send(v) end
        time.sleep("1ms")
    """) == ["1 a", "2 b", "3 c"]


def test_nil_and_false_are_values_like_any_other():
    assert printed("""
        local ch = new(2)
        ch:send(nil) ch:send(false)
        print(ch:receive()) print(ch:receive())
    """) == ["nil true", "false true"]


def test_a_value_is_handed_over_as_it_is():
    assert printed("""
        local ch, t = new(1), {}
        ch:send(t)
        print(ch:receive() == t)
    """) == ["true"]


def test_a_channel_of_a_thousand_values_keeps_them():
    assert printed("""
        local ch, sum = new(1000), 0
        for i = 1, 1000 do ch:send(i) end
        for i = 1, 1000 do sum = sum + ch:receive() end
        print(sum)
    """) == ["500500"]


# close ----------------------------------------------------------------------------------------------------


def test_a_closed_channel_gives_nil_and_false_once_its_buffer_is_empty():
    assert printed("""
        local ch = new(2)
        ch:send("a") ch:send("b")
        print(select("#", ch:close()))
        print(ch:receive()) print(ch:receive()) print(ch:receive()) print(ch:receive())
    """) == ["0", "a true", "b true", "nil false", "nil false"]


def test_closing_twice_does_nothing():
    assert printed("local ch = new() ch:close() ch:close() print(ch:receive())") == ["nil false"]


def test_closing_wakes_all_receivers():
    assert printed("""
        local ch = new()
        for i = 1, 3 do spawn(function() print(i, ch:receive()) end) end
        time.sleep("1s")
        ch:close()
        time.sleep("1s")
    """) == ["1 nil false", "2 nil false", "3 nil false"]


def test_closing_raises_in_blocked_senders_at_their_line():
    assert printed("""local ch = new(1)
        ch:send("kept")
        spawn(function() print(pcall(function()
          return ch:send("lost"), "x"
        end)) end)
        time.sleep("1s")
        ch:close()
        time.sleep("1s")
        print(ch:receive()) print(ch:receive())
    """) == ["false app.lua:5: send on a closed channel", "kept true", "nil false"]


def test_sending_into_a_closed_channel_raises_at_the_line_of_the_send():
    assert failure("local ch = channel.new(5) ch:close()\nch:send(1)") == (
        "app.lua:2: send on a closed channel"
    )


# select ---------------------------------------------------------------------------------------------------


def test_select_takes_the_case_that_is_ready():
    assert printed("""
        local a, b = new(1), new(1)
        b:send("v")
        local r = channel.select{a:case_receive(), b:case_receive()}
        print(r.channel == b, r.value, r.ok, r.default)
    """) == ["true v true nil"]


def test_select_waits_for_the_first_case_to_become_ready():
    assert printed("""
        local a, b = new(), new()
        spawn(function() time.sleep("2s") a:send("late") end)
        spawn(function() time.sleep("1s") b:send("soon") end)
        local r = channel.select{a:case_receive(), b:case_receive()}
        at(r.value)
        at((a:receive()))
    """) == ["1.0 soon", "2.0 late"]


def test_select_sends_where_a_receiver_waits():
    assert printed("""
        local a, b = new(), new()
        spawn(function() print("received", (b:receive())) end)
        time.sleep("1s")
        local r = channel.select{a:case_send("no"), b:case_send("yes")}
        print(r.channel == b, r.value, r.ok)
        time.sleep("1s")
    """) == ["true nil true", "received yes"]


def test_select_waits_to_send_until_somebody_receives():
    assert printed("""
        local ch = new()
        spawn(function() time.sleep("1s") print("received", (ch:receive())) end)
        local r = channel.select{ch:case_send("v")}
        at(tostring(r.ok))
        time.sleep("1s")
    """) == ["received v", "1.0 true"]


def test_select_with_a_default_does_not_wait():
    assert printed("""
        local ch = new()
        local r = channel.select{ch:case_receive(), ch:case_send(1), default = true}
        print(r.default, r.ok, r.channel)
        print(channel.select{default = true}.default)
    """) == ["true true nil", "true"]


def test_select_prefers_a_ready_case_to_the_default():
    assert printed("""
        local ch = new(1)
        ch:send("v")
        print(channel.select{ch:case_receive(), default = true}.value)
    """) == ["v"]


def test_select_sees_a_closed_channel_as_ready():
    assert printed("""
        local ch = new()
        ch:close()
        local r = channel.select{ch:case_receive()}
        print(r.channel == ch, r.value, r.ok)
    """) == ["true nil false"]


def test_a_waiting_select_is_woken_by_a_close():
    assert printed("""
        local a, b = new(), new()
        spawn(function() time.sleep("1s") b:close() end)
        local r = channel.select{a:case_receive(), b:case_receive()}
        print(r.channel == b, r.value, r.ok)
    """) == ["true nil false"]


@pytest.mark.parametrize("early", ["ch:close()", "spawn(function() time.sleep('1s') ch:close() end)"])
def test_select_raises_where_its_send_meets_a_closed_channel(early: str):
    assert printed(f"""
        local ch = new()
        {early}
        print(pcall(channel.select, {{ch:case_send(1)}}))
    """)[0].endswith("send on a closed channel")


def test_a_case_that_was_not_taken_leaves_no_trace():
    assert printed("""
        local a, b = new(), new()
        spawn(function() channel.select{a:case_send("never"), b:case_send("b")} end)
        print((b:receive()))
        print(channel.select{a:case_receive(), default = true}.default)
    """) == ["b", "true"]


def test_select_chooses_among_ready_cases_evenly():
    assert printed("""
        local a, b, c = new(3000), new(3000), new(3000)
        for i = 1, 3000 do a:send(a) b:send(b) c:send(c) end
        local counts = {[a] = 0, [b] = 0, [c] = 0}
        for i = 1, 3000 do
          local r = channel.select{a:case_receive(), b:case_receive(), c:case_receive()}
          counts[r.channel] = counts[r.channel] + 1
        end
        for _, ch in ipairs{a, b, c} do print(counts[ch] > 850 and counts[ch] < 1150 or counts[ch]) end
    """) == ["true", "true", "true"]


def test_select_leaves_the_numbers_of_math_random_alone():
    assert printed("""
        local a, b = new(9), new(9)
        for i = 1, 9 do a:send(i) b:send(i) end
        math.randomseed(7)
        local first = math.random(1000000)
        math.randomseed(7)
        channel.select{a:case_receive(), b:case_receive()}
        print(math.random(1000000) == first)
    """) == ["true"]


def test_a_select_in_a_loop_does_not_pile_up_on_the_channel_that_never_fires():
    running = Stage("""
    local stop = channel.new()
    function handle()
      local work, r = channel.new()
      coroutine.spawn(function() for i = 1, 5000 do work:send(i) end work:close() end)
      repeat r = channel.select{work:case_receive(), stop:case_receive()} until not r.ok
    end
    """)
    assert running.run() == Finished()
    used = running.state.memory._used()
    for _ in range(4):
        assert running.run() == Finished()
    assert running.state.memory._used() < used + 512 * 1024


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("channel.select()", "table of cases expected, got nil"),
        ("channel.select{1}", "case 1 is no case: use ch:case_receive() or ch:case_send(value)"),
        ("channel.select{channel.new():case_receive(), channel.new()}", "case 2 is no case"),
        ("channel.select{}", "without a case this would wait for ever"),
        ("channel.select{x = 1}", "a list of cases and `default` expected"),
        ("channel.new(-1)", "size expected: a whole number from 0 on"),
        ("channel.new('x')", "size expected"),
        ("channel.new(1.5)", "size expected"),
        ("channel.new().send(1)", "ch:send() needs a channel; call it with a colon"),
        ("channel.new().receive({})", "ch:receive() needs a channel"),
        ("channel.new().close()", "ch:close() needs a channel"),
        ("channel.new().case_send(1)", "ch:case_send() needs a channel"),
        ("channel.new().case_receive(1)", "ch:case_receive() needs a channel"),
        ("channel.new().x = 1", "a channel is read-only"),
        ("channel.x = 1", "read-only"),
    ],
)
def test_a_bad_argument_raises_at_the_handlers_line(call: str, reason: str):
    text = failure(f"\n{call}")
    assert text.startswith("app.lua:2: ")
    assert reason in text


def test_the_channel_table_is_global_whatever_modules_are_granted():
    assert run("print(type(channel.new), require('channel') == channel)", modules=()).printed == [
        "function true"
    ]


def test_a_channel_can_be_made_while_the_file_is_loaded_but_not_waited_for():
    assert Stage(
        "local ch = channel.new(1) ch:send(1) function handle() print((ch:receive())) end"
    ).run() == (Finished())
    with pytest.raises(HandlerLoadError, match="would wait for ever: no message is being handled"):
        load("channel.new():receive() function handle() end")


# deadlock -------------------------------------------------------------------------------------------------


def test_a_handler_that_nobody_can_wake_fails_with_a_deadlock():
    running = stage("\nlocal ch = channel.new()\nch:receive()")
    error = running.run().error
    assert error is not None
    assert error.text == (
        "deadlock: the handler waits at app.lua:3; nothing is pending that could wake one of them"
    )
    assert (error.kind_value, error.is_retryable) == ("Internal", False)


def test_a_deadlock_names_where_each_coroutine_waits():
    assert failure("""
        local a, b = channel.new(), channel.new()
        coroutine.spawn(function()
          a:receive()
        end)
        coroutine.wrap(function()
          b:send(1)
        end)()
    """).startswith("deadlock: the handler waits at app.lua:8, its other coroutines (1) at app.lua:4;")


def test_a_deadlock_cannot_be_caught():
    assert failure("while true do pcall(function() channel.new():receive() end) end").startswith("deadlock")


def test_nothing_is_a_deadlock_while_a_sleep_or_a_request_is_pending():
    assert printed("""
        local ch = new()
        spawn(function() queue.publish("app:q", 1) ch:send("published") end)
        print((ch:receive()))
        spawn(function() time.sleep("1h") ch:send("slept") end)
        print((ch:receive()))
    """) == ["published", "slept"]


def test_a_timer_that_nobody_waits_for_does_not_hide_a_deadlock():
    assert failure("local t = time.ticker('1s') channel.new():receive()").startswith("deadlock")


def test_the_state_serves_the_next_message_after_a_deadlock():
    running = Stage("function handle(b) if b then channel.new():receive() end print('served') end")
    assert running.run(True).error is not None
    assert running.run(False) == Finished()
    assert running.printed == ["served"]


# Between messages -----------------------------------------------------------------------------------------


def test_a_channel_outlives_its_message_with_what_it_buffers_and_without_those_who_waited():
    running = Stage("""
    local kept, blocked = channel.new(2), channel.new()
    function handle(first)
      if first then
        kept:send("buffered")
        coroutine.spawn(function() blocked:send("lost") end)
        coroutine.spawn(function() print("never", (blocked:receive())) end)
        coroutine.spawn(function() print("never", channel.new():receive()) end)
        coroutine.spawn(function() blocked:send("lost, too") end)
        time.sleep("1s")
      else
        print((kept:receive()))
        print(channel.select{blocked:case_receive(), default = true}.default)
        print(channel.select{blocked:case_send(1), default = true}.default)
      end
    end
    """)
    assert running.run(True) == Finished()
    assert running.run(False) == Finished()
    assert running.printed == ["never lost", "buffered", "true", "true"]
