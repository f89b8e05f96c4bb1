"""A handler's coroutine serves one message after the other, and nothing a handler can see tells so."""

from __future__ import annotations

from typing import Any

import pytest
from lua_driver import Clock, FakeHost, Run, load

from lunaq_runtime.lua.errors import INTERNAL, HandlerError
from lunaq_runtime.lua.requests import Publish
from lunaq_runtime.lua.state import MessageContext

FIRST_AND_LATER = pytest.mark.parametrize("before", [0, 1, 3])
"""How many messages the coroutine has handled before."""


class Handler:
    """A loaded handler, to be run several times."""

    def __init__(self, source: str, **fields: Any) -> None:
        self.host = FakeHost()
        self.state = load(source, host=self.host, **fields)

    def run(self, body: Any = None, replies: list[tuple[Any, ...]] | None = None) -> Run:
        return Run(self.state, self.host).go(body, MessageContext("id"), replies or [])


def test_the_messages_of_a_state_share_a_coroutine_until_one_fails() -> None:
    handler = Handler(
        """local seen, count = {}, 0
        function handle(body)
          local thread = coroutine.running()
          if not seen[thread] then
            count = count + 1
            seen[thread] = true
          end
          print(count)
          if body == "fail" then error("no") end
        end"""
    )
    for body in ("", "", "fail", "", ""):
        handler.run(body)
    assert handler.host.printed() == ["1", "1", "1", "2", "2"]


@FIRST_AND_LATER
def test_an_error_of_the_callers_level_has_no_place_above_the_handler(before: int) -> None:
    handler = Handler("function handle(body) if body then error('whose?', 2) end end")
    for _ in range(before):
        handler.run()
    error = handler.run("x").finished.error
    assert error is not None
    assert error.text == "whose?"


@FIRST_AND_LATER
def test_a_traceback_ends_with_the_handler(before: int) -> None:
    handler = Handler(
        """local function deep() error("far down") end
        function handle(body)
          if body then deep() end
        end"""
    )
    for _ in range(before):
        handler.run()
    error = handler.run("x").finished.error
    assert error is not None
    assert error.frames == (
        "[C]: in function 'error'",
        "app.lua:1: in upvalue 'deep'",
        "app.lua:3: in function <app.lua:2>",
    )


@FIRST_AND_LATER
def test_the_stack_of_an_error_object_ends_with_the_handler(before: int) -> None:
    handler = Handler(
        """function handle(body)
          if body then print((errors.new("made here"):stack())) end
        end"""
    )
    for _ in range(before):
        handler.run()
    handler.run("x")
    assert handler.host.printed() == ["made here\n\tapp.lua:2: in Lua"]


def test_what_an_earlier_message_remembers_of_its_coroutine_cannot_be_resumed_or_closed() -> None:
    handler = Handler(
        """local threads = {}
        function handle(body)
          threads[#threads + 1] = coroutine.running()
          if body == "fail" then error("no") end
          if body == "wait" then time.sleep("1s") end
          if body == "try" then
            for _, thread in ipairs(threads) do
              print(coroutine.resume(thread, "again"))
              print(pcall(coroutine.close, thread))
              print(coroutine.status(thread))
            end
          end
        end"""
    )
    handler.run("")
    # The second message leaves the coroutine behind in a wait, so that the third gets another one.
    invocation = handler.state.start(MessageContext("id"), "wait")
    invocation.step()
    invocation.abort(HandlerError("enough", INTERNAL))
    assert handler.run("try").finished.error is None
    printed = handler.host.printed()
    assert len(printed) == 9
    assert [line for line in printed if "again" in line or line.startswith("true")] == []
    assert printed[2] == printed[5] == "suspended"


def test_a_handler_that_ran_out_of_time_between_two_coroutines_is_not_continued() -> None:
    clock = Clock()
    handler = Handler("function handle(body) if body then while true do end end print('on') end", clock=clock)
    handler.run()
    invocation = handler.state.start(MessageContext("id"), "x")
    invocation.interrupt(HandlerError("stop", INTERNAL))
    invocation.step()
    handler.run()
    handler.run()
    assert handler.host.printed() == ["on", "on", "on"]


@FIRST_AND_LATER
def test_a_handler_that_spawns_ends_with_its_own_return_value(before: int) -> None:
    handler = Handler(
        """function handle(body)
          local done = channel.new()
          coroutine.spawn(function() done:send(body) end)
          local got = done:receive()
          if got == "bad" then return nil, errors.new("spawned: " .. got) end
        end"""
    )
    for _ in range(before):
        assert handler.run("good").finished.error is None
    error = handler.run("bad").finished.error
    assert error is not None
    assert error.text == "spawned: bad"
    assert handler.run("good").finished.error is None


def test_each_message_gets_its_own_body_and_waits_for_its_own_reply() -> None:
    handler = Handler(
        """function handle(body)
          local ok, err = queue.publish("app:out", {n = body.n})
          print(body.n, ok, err and err:message())
        end"""
    )
    for number in range(3):
        done = handler.run({"n": number})
        assert done.requests == [Publish("app:out", {"n": number}, {})]
    assert handler.host.printed() == ["0 true nil", "1 true nil", "2 true nil"]


def test_a_result_and_a_body_are_garbage_once_the_next_message_is_handled() -> None:
    handler = Handler(
        """local kept = setmetatable({}, {__mode = "k"})
        function handle(body)
          local count = 0
          for _ in pairs(kept) do count = count + 1 end
          if body then
            local result = {}
            kept[result], kept[body] = true, true
            return result
          end
          local waste = {}
          for i = 1, 20000 do waste[i % 10] = {} end
          count = 0
          for _ in pairs(kept) do count = count + 1 end
          print(count)
        end""",
    )
    handler.run({"some": "thing"})
    for _ in range(40):
        handler.run()
    assert handler.host.printed()[-1] == "0"


@FIRST_AND_LATER
def test_what_is_closed_at_the_handlers_end_may_wait_and_may_fail(before: int) -> None:
    handler = Handler(
        """local function closing(act) return setmetatable({}, {__close = act}) end
        function handle(body)
          local last <close> = closing(function()
            print("published", (queue.publish("app:out", {n = 1})))
            if body == "fail" then error("while closing") end
          end)
          return nil
        end"""
    )
    for _ in range(before):
        assert handler.run().finished.error is None
    error = handler.run("fail").finished.error
    assert error is not None
    assert error.text == "app.lua:5: while closing"
    done = handler.run()
    assert done.finished.error is None
    assert done.requests == [Publish("app:out", {"n": 1}, {})]
    assert handler.host.printed() == ["published true"] * (before + 2)


@FIRST_AND_LATER
def test_a_handler_that_ends_with_a_call_that_waits_gets_its_reply(before: int) -> None:
    handler = Handler('function handle(body) return queue.publish("app:out", {n = 1}) end')
    for _ in range(before):
        assert handler.run().finished.error is None
    refused = HandlerError("full", INTERNAL)
    assert handler.run(replies=[(None, refused)]).finished.error is refused
    assert handler.run().finished.error is None


def test_a_deep_recursion_leaves_room_for_the_next_message() -> None:
    handler = Handler(
        """local function deep(n) if n == 0 then return 0 end return 1 + deep(n - 1) end
        function handle(body) print(deep(body)) end""",
        memory_limit=16 * 1024 * 1024,
    )
    for _ in range(20):
        assert handler.run(100_000).finished.error is None
    assert handler.host.printed() == ["100000"] * 20
