"""Time and memory limits: what a handler tries in order to go on, and what it finds.

The limits are of wall clock, so these tests wait a few hundredths of a second each; nothing asserts speed.
"""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
from lua_driver import Clock, FakeHost, load, run

from lunaq_runtime.lua.errors import CANCELED, TIMEOUT, HandlerError
from lunaq_runtime.lua.requests import Finished, Sleep
from lunaq_runtime.lua.state import Invocation, MessageContext

LIMIT = 0.05


@pytest.mark.parametrize(
    "source",
    [
        "while true do end",
        "local function f() return f() end f()",
        "while true do pcall(function() while true do end end) end",
        "while true do pcall(error, 'x') end",
        "while true do xpcall(error, function() while true do end end) end",
        "xpcall(function() while true do end end, function() while true do end end) while true do end",
        "coroutine.wrap(function() while true do end end)()",
        "while true do pcall(coroutine.wrap(function() while true do pcall(error) end end)) end",
        "while true do coroutine.resume(coroutine.create(function() while true do end end)) end",
        "local co = coroutine.wrap(function() while true do coroutine.yield() end end) while 1 do co() end",
        "local x <close> = setmetatable({}, {__close = function() while true do end end}) error('x')",
        "local t = setmetatable({}, {__index = function() while true do end end}) return t.x",
        "table.sort({3, 2, 1}, function() while true do end end)",
        "('x'):gsub('x', function() while true do end end)",
        "for _ in function() while true do end end do end",
        "while true do pcall(queue.publish, {}) end",
    ],
)
def test_an_endless_handler_is_ended_by_its_time_limit(source: str):
    finished = run(source, timeout=LIMIT, replies=[]).finished
    assert finished.error is not None
    assert finished.error.kind_value == TIMEOUT
    assert finished.error.is_retryable is True
    assert "0.05s" in finished.error.text
    assert "`timeout`" in finished.error.text


def test_a_state_that_was_ended_cleanly_serves_the_next_message():
    state = load("function handle(forever) while forever do end end", timeout=LIMIT)
    finished = state.start(MessageContext("1"), True).step()
    assert isinstance(finished, Finished)
    assert (finished.error is not None, finished.state_lost) == (True, False)
    assert state.start(MessageContext("2"), False).step() == Finished()


def test_a_state_in_which_the_end_was_caught_is_lost():
    finished = run("while true do pcall(function() while true do end end) end", timeout=LIMIT).finished
    assert finished.state_lost


def test_an_end_that_a_coroutine_swallowed_is_not_taken_for_success():
    finished = run(
        "local co = coroutine.create(function() while true do end end) coroutine.resume(co) return true",
        timeout=LIMIT,
    ).finished
    assert finished.error is not None
    assert finished.error.kind_value == TIMEOUT


@pytest.mark.parametrize(
    "source",
    [
        # At the end of a stack the hook cannot run, and its failure would be caught instead.
        "local function f() while true do pcall(f) end end f()",
        "local function f() while true do coroutine.resume(coroutine.create(f)) end end f()",
        "local function f() while true do xpcall(f, function() while true do end end) end end f()",
        "local m = {} m.__index = function() while 1 do pcall(setmetatable({}, m).x) end end m.__index()",
    ],
)
def test_an_exhausted_stack_cannot_be_caught(source: str):
    finished = run(source, timeout=5.0).finished
    assert finished.error is not None


@pytest.mark.parametrize("depth", [190, 194, 195, 196, 197, 198])
@pytest.mark.parametrize(
    "loop",
    [
        "pcall(function() while true do end end)",
        "xpcall(function() while true do end end, function() while true do end end)",
        "coroutine.resume(coroutine.create(function() while true do end end))",
    ],
)
def test_a_loop_just_above_the_end_of_the_stack_is_ended_as_well(depth: int, loop: str):
    finished = run(
        f"local function dive(n) if n == 0 then while true do {loop} end end"
        f" return setmetatable({{}}, {{__index = function() return dive(n - 1) end}}).x end dive({depth})",
        timeout=LIMIT,
    ).finished
    assert finished.error is not None


@pytest.mark.parametrize(
    "source",
    [
        "local t = {} while true do t[#t + 1] = ('x'):rep(100000) .. #t end",
        "local ok = pcall(function() local t = {} while true do t[#t + 1] = ('x'):rep(100000) .. #t end end)",
        "local t = {} while true do pcall(function() while true do t[#t + 1] = {} end end) end",
        "local t = {} coroutine.wrap(function() while true do t[#t + 1] = ('x'):rep(100000) .. #t end end)()",
        "return ('x'):rep(1e9)",
        "local s = 'x' while true do s = s .. s end",
        "local t = {} for i = 1, 1e9 do t[i] = i end",
    ],
)
def test_a_memory_bomb_is_contained_and_the_state_is_lost(source: str):
    finished = run(source, memory_limit=8 * 1024 * 1024).finished
    assert finished.state_lost
    assert finished.error is not None
    assert "memory limit of 8388608 bytes" in finished.error.text
    assert finished.error.is_retryable is True


def test_the_memory_limit_does_not_count_the_sandbox():
    source = "function handle() return (('x'):rep(450 * 1024)) end"  # needs it twice
    state = load(source, memory_limit=1024 * 1024)
    assert state.start(MessageContext("1"), None).step() == Finished()


def test_a_body_that_does_not_fit_into_memory_loses_the_state():
    state = load("function handle() end", memory_limit=256 * 1024)
    finished = state.start(MessageContext("1"), ["x" * 1000 for _ in range(2000)]).step()
    assert isinstance(finished, Finished)
    assert finished.state_lost


def test_a_body_that_nests_too_deep_never_reaches_the_handler():
    body: list[object] = []
    for _ in range(200):
        body = [body]
    finished = load("function handle() error('called') end").start(MessageContext("1"), body).step()
    assert isinstance(finished, Finished)
    assert finished.error is not None
    assert "maximum depth of 128" in finished.error.text


def test_a_reply_that_comes_too_late_ends_the_handler_without_resuming_it():
    clock, host = Clock(), FakeHost()
    state = load(
        "function handle() time.sleep('1s') print('resumed') end", clock=clock, host=host, timeout=10.0
    )
    invocation = state.start(MessageContext("1"), None)
    assert invocation.step() == Sleep(1.0)
    clock.now = 10.0
    finished = invocation.step(())
    assert isinstance(finished, Finished)
    assert finished.error is not None
    assert (finished.error.kind_value, finished.state_lost) == (TIMEOUT, False)
    assert host.printed() == []


def test_an_interrupt_from_another_thread_ends_running_lua_even_inside_pcall():
    running = threading.Event()

    class Host(FakeHost):
        def log(self, *_: object) -> None:
            running.set()

    state = load(
        "function handle() print('up') while true do pcall(function() while true do end end) end end",
        host=Host(),
    )
    invocation = state.start(MessageContext("1"), None)
    ends: list[object] = []
    thread = threading.Thread(target=lambda: ends.append(invocation.step()))
    thread.start()
    assert running.wait(30)
    error = HandlerError("shutting down", CANCELED)
    invocation.interrupt(error)
    thread.join(30)
    assert ends == [Finished(error, state_lost=True)]


def test_an_interrupt_while_it_waits_ends_it_at_the_next_step():
    invocation = load("function handle() time.sleep('1s') end").start(MessageContext("1"), None)
    invocation.step()
    error = HandlerError("shutting down", CANCELED)
    invocation.interrupt(error)
    assert invocation.step(()) == Finished(error)


def test_two_states_run_at_the_same_time():
    """One sleeps in a request while the other works: states share nothing."""
    first = load("function handle() time.sleep('1s') end").start(MessageContext("1"), None)
    assert isinstance(first.step(), Sleep)
    assert run("return 1").finished == Finished()
    assert first.step(()) == Finished()


def test_an_invocation_that_has_not_begun_can_be_aborted():
    invocation: Invocation = load("function handle() error('ran') end").start(MessageContext("1"), None)
    error = HandlerError("no time")
    assert invocation.abort(error) == Finished(error)


@pytest.mark.parametrize(
    "use",
    [
        "json.encode({('x'):rep(3000)})",
        "json.decode('[' .. ('1,'):rep(3000) .. '1]')",
        "errors.new(('x'):rep(3000) .. #t)",
        "uuid.v4()",
        "queue.message():headers()",
        "queue.message():header('long')",
        "tostring(time.now())",
        "logger:info(('x'):rep(3000))",
        "time.sleep('1s')",
        "queue.publish('app:emails', {('x'):rep(3000)})",
        "queue.info('app:emails')",
        "require('nope')",
    ],
)
def test_calls_into_python_at_the_edge_of_memory_neither_hang_nor_abort_the_process(use: str):
    """What Python hands over needs memory as well; lupa does not survive running out of it there."""
    finished = run(
        f"local t = {{}} while true do pcall(function() t[#t + 1] = ({use}) or {{}} end)"
        " t[#t + 1] = ('y'):rep(500) .. #t end",
        memory_limit=512 * 1024,
        context=MessageContext("id", {"long": "z" * 20_000, "list": list(range(500))}),
        timeout=20.0,
    ).finished
    assert finished.state_lost
    assert finished.error is not None
    assert "memory limit" in finished.error.text


def test_a_state_that_is_dropped_gives_its_memory_back_at_once():
    """Up to its whole limit: that must not wait for the garbage collector."""
    aborted = load("function handle() time.sleep('1s') end")
    invocation = aborted.start(MessageContext("1"), None)
    invocation.step()
    invocation.abort(HandlerError("enough"))
    used = load("function handle() return queue.message():headers() end")
    used.start(MessageContext("1"), None).step()
    gc.disable()
    try:
        callbacks = [weakref.ref(aborted.callbacks), weakref.ref(used.callbacks)]
        del aborted, invocation, used
        assert [reference() for reference in callbacks] == [None, None]
    finally:
        gc.enable()
