"""Handlers run ahead of the confirms of their publishes, and nobody can tell (lua/prelude/ahead.lua)."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from lua_driver import Clock, FakeHost, load

from lunaq_runtime.lua.errors import INTERNAL, HandlerError
from lunaq_runtime.lua.prelude import source_of
from lunaq_runtime.lua.requests import PUBLISHED, SUCCEEDED, Finished, Publish, Sleep, Void, Wait
from lunaq_runtime.lua.state import LuaState, MessageContext
from lunaq_runtime.policy import PUBLISH, PUBLISH_TO, Policy
from lunaq_runtime.worker import Counters
from lunaq_runtime.worker.host import WorkerHost

LAST = "queue.publish('app:out', {n = 1})"


def ahead(source: str, host: FakeHost | None = None, **fields: Any) -> LuaState:
    """Load the body of a handler whose runs may go ahead."""
    state = load(f"return function(body) {source}\nend", host=host, **fields)
    state.run_ahead(True)
    return state


def start(state: LuaState, body: Any = None) -> Any:
    return state.start(MessageContext("id-1"), body)


def refused() -> tuple[Any, ...]:
    return None, HandlerError("no room", INTERNAL, retryable=True, details={"reason": "nacked"})


def answer(request: Any, reply: tuple[Any, ...], clock: Clock) -> tuple[Any, ...]:
    """Carry out a request; `reply` is that to a publish."""
    match request:
        case Publish():
            return reply
        case Wait(outstanding=outstanding):
            return tuple((tag, answer(each, reply, clock)) for tag, each in outstanding.asked.items())
        case Sleep(seconds=seconds):
            clock.now += seconds
            return ()
    return True, None


class Trace:
    """All that a run lets others see, begun anew where it was void."""

    def __init__(self, source: str, *, may: bool, reply: tuple[Any, ...]) -> None:
        self.host = FakeHost()
        self.clock = Clock()
        self.state = ahead(source, self.host, clock=self.clock)
        self.requests: list[Any] = []
        self.voids = 0
        outcome = self.run(may=may, reply=reply)
        if isinstance(outcome, Void):
            self.voids = 1
            assert self.host.records == []
            assert len(self.requests) <= 1  # a publish that was refused
            self.requests.clear()
            outcome = self.run(may=False, reply=reply)
        self.finished = outcome

    def run(self, *, may: bool, reply: tuple[Any, ...]) -> Any:
        self.state.run_ahead(may)
        invocation = start(self.state)
        outcome = invocation.step()
        while not isinstance(outcome, (Finished, Void)):
            if isinstance(outcome, Publish):
                self.requests.append(replace(outcome, ended=None))
            elif isinstance(outcome, Wait):
                self.requests += outcome.outstanding.asked.values()
            else:
                self.requests.append(outcome)
            if isinstance(outcome, Publish) and outcome.ended:
                return outcome.ended if reply is PUBLISHED else Void()
            outcome = invocation.step(answer(outcome, reply, self.clock))
        return outcome

    def seen(self) -> Any:
        error = self.finished.error
        told = (error.text, error.kind_value, error.frames) if error else None
        return self.requests, self.host.records, told, self.finished.settled, self.finished.state_lost


HANDLERS = [
    LAST,
    f"return {LAST}",
    f"local ok, err = {LAST} return ok, err",
    f"assert({LAST})",
    f"local ok, err = {LAST} print(tostring(ok), tostring(err))",
    f"print({LAST})",
    f"local ok, err = {LAST} if not ok then logger:warn(err:message()) end",
    f"{LAST} return false",
    f"{LAST} return nil, 'a text'",
    f"{LAST} return nil, errors.new('an error')",
    f"{LAST} return 1, {{}}",
    f"{LAST} return 5",
    f"{LAST} error('raised')",
    f"{LAST} error(errors.new('raised'))",
    f"local ok = pcall(function() {LAST} error('caught') end) print(ok)",
    f"{LAST} {LAST}",
    f"local ok = {LAST} if not ok then queue.publish('app:other', {{n = 2}}) end",
    f"{LAST} time.sleep('1s') {LAST}",
    f"{LAST} queue.message():ack() error('too late')",
    f"{LAST} queue.message():nack()",
    f"{LAST} coroutine.spawn(function() print('spawned') end) time.sleep('1ms')",
    f"coroutine.spawn(function() {LAST} print('spawned') end) time.sleep('1ms')",
    f"coroutine.wrap(function() {LAST} print('wrapped') end)()",
    f"local co = coroutine.create(function() {LAST} coroutine.yield(1) end) print(coroutine.resume(co))",
    f"{LAST} local c = channel.new(1) c:send(1) local v = c:receive() print(v)",
    f"{LAST} local t = {{3, 1, 2}} table.sort(t, function(a, b) print(a, b) return a < b end)",
    f"{LAST} table.sort({{2, 1}}, function(a, b) coroutine.wrap(function() print(a) end)() return a < b end)",
    f"{LAST} print(tostring(setmetatable({{}}, {{__tostring = function() print('in') return 'x' end}})))",
    f"do local c <close> = setmetatable({{}}, {{__close = function() {LAST} end}}) end print('closed')",
    f"local c <close> = setmetatable({{}}, {{__close = function() {LAST} end}}) error('out')",
    f"local n = 0 {LAST} for i = 1, 100000 do n = n + i end print(n)",
    f"{LAST} for i = 1, 100000 do pcall(error, i) end",
    f"print('before') {LAST} print('after')",
    "queue.publish('app:out', 'a text')",
    "queue.publish('app:out', {n = 1}, {priority = 'high', n = 1})",
    "queue.publish('app:out', {n = 1}, {x_reserved = 1})",
    "queue.publish('app:out', {list = {1, 2, {3}}})",
    "queue.publish('app:out', string.rep('x', 100000)) json.encode({string.rep('y', 100000)})",
    "local t = {} for i = 1, 5000 do t[i] = {i} end queue.publish('app:out', t) json.encode(t)",
    "print(queue.publish('app:out', {}))",
    "print(queue.publish('', {n = 1}))",
    "print(queue.publish())",
    "print(queue.publish('app:out', {n = 1}, {CC = 'x'}))",
    "local ok = pcall(queue.publish, {}, {n = 1}) print(ok)",
    "local t = {} t.t = t print(queue.publish('app:out', {t}))",
]


@pytest.mark.parametrize("reply", [PUBLISHED, refused()], ids=["confirmed", "refused"])
@pytest.mark.parametrize("source", HANDLERS)
def test_nobody_can_tell_a_run_that_went_ahead(source: str, reply: tuple[Any, ...]):
    waited, went = (Trace(source, may=may, reply=reply) for may in (False, True))
    assert went.seen() == waited.seen()
    assert waited.voids == 0


def test_a_handler_that_publishes_last_is_over_and_its_state_free_before_the_confirm():
    state = ahead(f"return {LAST}")
    for _ in range(2):
        assert start(state).step() == Publish("app:out", {"n": 1}, {}, SUCCEEDED)


def test_what_it_came_to_goes_with_the_publish():
    assert start(ahead(f"{LAST} return nil, 'failed'")).step().ended.error.text == "failed"


SEEN = {
    "a record": "logger:info('seen')",
    "a print": "print('seen')",
    "another publish": "queue.publish('app:other', {n = 2})",
    "a publish with headers": "queue.publish('app:other', {n = 2}, {h = 1})",
    "a settlement": "queue.message():ack()",
    "a sleep": "time.sleep('1s')",
    "a look at a queue": "queue.info('app:out')",
    "a coroutine": "coroutine.spawn(function() end)",
    "a timer": "time.after('1ms'):receive()",
    "a metric": "metrics.counter_inc('n')",
    "the clock": "time.now()",
    "the policy": "security.can('a', 'b')",
}


@pytest.mark.parametrize("what", SEEN)
def test_what_others_can_see_waits_for_the_confirm(what: str):
    host = FakeHost()
    state = ahead(f"{LAST} {SEEN[what]}", host)
    invocation = start(state)
    first = invocation.step()
    assert (first.__class__, first.ended) == (Publish, None)
    assert host.records == []
    assert host.asked == [(PUBLISH, ""), (PUBLISH_TO, "app:out")]
    assert not isinstance(invocation.step(PUBLISHED), Void)


@pytest.mark.parametrize("what", [name for name in SEEN if name != "the clock"])
def test_a_run_of_which_something_was_seen_waits(what: str):
    clock = Clock()
    invocation = start(ahead(f"{SEEN[what]} {LAST} error('after')", clock=clock))
    outcome = invocation.step()
    while not isinstance(outcome, Finished):
        assert getattr(outcome, "ended", None) is None
        outcome = invocation.step(answer(outcome, PUBLISHED, clock))
    assert outcome.error is not None
    assert "after" in outcome.error.text


@pytest.mark.parametrize(
    "reads",
    [
        "time.now()",
        "json.encode({1})",
        "json.decode('[1]')",
        "queue.message():header('h')",
        "queue.message():id()",
        "uuid.v4()",
        "hash.sha256('x')",
        "errors.new('x'):message()",
        "time.parse_duration('1s')",
    ],
)
def test_one_that_only_looked_goes_ahead(reads: str):
    assert start(ahead(f"{reads} {LAST}")).step().ended is SUCCEEDED


def test_each_callback_is_known_to_be_harmless_or_waits():
    source = source_of("ahead").decode()

    def listed(table: str) -> set[str]:
        [body] = re.findall(rf"local {table} = {{([^}}]*)}}", source)
        return set(re.findall(r"(\w+) = true", body))

    names = {name.decode() for name in ahead("").callbacks.exported()} - {"ARRAY", "OBJECT"}
    kinds = listed("HARMLESS_KINDS")
    assert listed("HARMLESS") | listed("CLOCKS") <= names
    assert kinds <= {name.split("_")[0] for name in names}
    harmless = listed("HARMLESS") | {name for name in names if name.split("_")[0] in kinds}
    # A new callback waits; where that is not needed, it is named in ahead.lua.
    assert names - harmless - listed("CLOCKS") == {
        "can",
        "drop",
        "feed",
        "log",
        "metrics_counter",
        "metrics_gauge",
        "metrics_histogram",
        "metrics_set",
        "store_delete",
        "store_entry",
        "store_get",
        "store_has",
        "store_info",
        "store_list",
        "store_open",
        "store_put",
        "store_set",
    }


def test_where_lua_cannot_wait_the_run_is_void_and_its_state_goes_on():
    host = FakeHost()
    state = ahead(f"{LAST} local t = {{2, 1}} table.sort(t, function(a, b) print(a) return a < b end)", host)
    assert start(state).step() == Void()
    assert host.records == []
    state.run_ahead(False)
    invocation = start(state)
    assert invocation.step().ended is None
    assert invocation.step(PUBLISHED) is SUCCEEDED
    assert host.printed() != []


@pytest.mark.parametrize(
    "goes_on", ["while true do end", "while true do pcall(function() while true do end end) end"]
)
def test_one_that_goes_on_for_long_is_void_whatever_it_catches(goes_on: str):
    assert isinstance(start(ahead(f"{LAST} {goes_on}")).step(), Void)


def test_one_that_goes_on_for_a_moment_is_not_void():
    assert start(ahead(f"{LAST} for i = 1, 1000 do end")).step().ended is SUCCEEDED


def test_a_publish_that_is_not_allowed_makes_it_void_and_is_denied_once():
    host = FakeHost(denied=((PUBLISH_TO, "app:out"),))
    state = ahead(f"local ok, err = {LAST} print(err:kind())", host)
    assert start(state).step() == Void()
    state.run_ahead(False)
    assert start(state).step() is SUCCEEDED
    assert host.printed() == ["PermissionDenied"]


@pytest.mark.parametrize("headers", ["", ", {h = 1}"])
@pytest.mark.parametrize("policy", [Policy(publish=True), Policy(publish_to=("app:out",))])
def test_a_denial_is_counted_once_however_often_the_handler_had_to_run(policy: Policy, headers: str):
    counters = Counters()
    host: Any = WorkerHost(lambda: policy, counters)
    state = ahead(f"queue.publish('app:out', {{n = 1}}{headers})", host)
    assert start(state).step() == Void()
    assert not counters.denials.counts()
    state.run_ahead(False)
    assert start(state).step() is SUCCEEDED
    assert list(counters.denials.counts().values()) == [1]


def test_memory_that_runs_out_after_the_publish_is_what_the_run_came_to():
    state = ahead(f"{LAST} local s = string.rep('x', 1 << 30)", memory_limit=1 << 20)
    publish = start(state).step()
    assert publish.ended.state_lost
    assert publish.ended.error.detail_values == {"reason": "out_of_memory"}


def test_a_handler_may_publish_once_it_is_told_not_to_run_ahead():
    state = ahead(LAST)
    state.run_ahead(False)
    invocation = start(state)
    assert invocation.step().ended is None
    assert invocation.step(PUBLISHED) is SUCCEEDED
