"""Several messages in one call of Lua: each ends as if it had been started by itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
from lua_driver import FakeHost, load

from lunaq_runtime.lua.errors import CANCELED, TIMEOUT, HandlerError
from lunaq_runtime.lua.requests import SUCCEEDED, Finished, Publish, Settle, Sleep
from lunaq_runtime.lua.state import Invocation, LuaState, MessageContext, NoRoomError

KB = 1024


class Batch:
    """Runs bodies of one shape in one call, as `worker.batch` does; `last` is what `turn` makes the last."""

    def __init__(self, source: str, *, last: int = 0, **fields: Any) -> None:
        self.host = FakeHost()
        self.state: LuaState = load(source, host=self.host, **fields)
        self.turns: list[int] = []
        self.invocation: Invocation | None = None
        self._last = last

    def run(self, *bodies: dict[str, Any]) -> tuple[int, Any]:
        """Teach the state the shape, run; returns the place where it ended and what that one came to."""
        self.learn(bodies[0])
        packed: list[Any] = []
        for body in bodies:
            assert self.state.pack(body, packed)
        place, outcome = self.state.start_batch(len(bodies), packed, KB, self._turn)
        if place == 0:
            assert outcome == (self._last or len(bodies))
            return 0, None
        if self.turns[-1:] != [place]:
            self._turn(place)
        assert self.invocation
        return place, self.invocation.carry_on(outcome)

    def learn(self, body: dict[str, Any]) -> None:
        for _ in range(2):
            self.state._shapes.shape(body)

    @property
    def printed(self) -> list[str]:
        return self.host.printed()

    def _turn(self, place: int) -> bool:
        if self.turns[-1:] != [place]:
            self.turns.append(place)
            self.state.finished()
            self.invocation = self.state.start(MessageContext(f"id-{place}"), None)
            self.invocation.begun()
        return place == self._last


def numbered(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"n": n, **more} for n in range(1, count + 1)]


def test_all_run_in_order_and_python_hears_of_none_that_needs_nothing():
    batch = Batch("seen = '' function handle(b) if b.show then print(seen) end seen = seen .. b.n end")
    assert batch.run(*numbered(5, show=False)) == (0, None)
    assert batch.turns == []
    assert batch.run({"n": 6, "show": True}) == (0, None)
    assert batch.printed == ["12345"]
    assert batch.turns == [1]


@pytest.mark.parametrize(
    ("ending", "text"),
    [
        ("error('no')", "no"),
        ("return nil, 'no'", "no"),
        ("return false", "the handler returned false"),
        ("error(errors.new('no'))", "no"),
        ("return nil, errors.new('no')", "no"),
    ],
)
def test_the_first_that_fails_ends_it_and_the_others_have_not_started(ending: str, text: str):
    batch = Batch(f"function handle(b) print(b.n) if b.n == 3 then {ending} end end")
    place, outcome = batch.run(*numbered(5))
    assert place == 3
    assert text in outcome.error.text
    assert batch.printed == ["1", "2", "3"]
    assert batch.run({"n": 7}, {"n": 8}) == (0, None)  # the state goes on


def test_one_that_asks_for_something_goes_on_by_itself():
    batch = Batch(
        "function handle(b) if b.n == 2 then queue.publish('app:out', b)"
        " local id = queue.message():id() print(id) end end"
    )
    place, outcome = batch.run(*numbered(3))
    assert (place, outcome.__class__) == (2, Publish)
    assert outcome.value == {"n": 2}
    assert batch.invocation
    assert batch.invocation.step((True, None)) is SUCCEEDED
    assert batch.printed == ["id-2"]
    assert batch.run(*numbered(1)) == (0, None)


@pytest.mark.parametrize(
    ("asks", "request_type"),
    [("time.sleep('1s')", Sleep), ("queue.message():ack()", Settle)],
)
def test_requests_of_every_kind_end_it(asks: str, request_type: type):
    place, outcome = Batch(f"function handle(b) {asks} end").run(*numbered(2))
    assert (place, outcome.__class__) == (1, request_type)


def test_each_sees_its_own_message_and_none_a_former_one():
    batch = Batch(
        "function handle(b) if old then local id = old:id() print(tostring(id)) end"
        " if b.n ~= 2 then old = queue.message() local id = old:id() print(id) end end"
    )
    assert batch.run(*numbered(4)) == (0, None)
    assert batch.printed == ["id-1", "nil", "nil", "id-3", "nil", "id-4"]


def test_each_has_the_whole_time_limit_and_only_the_one_that_exceeds_it_fails():
    batch = Batch("function handle(b) print(b.n) if b.n == 2 then while true do end end end", timeout=0.1)
    place, outcome = batch.run(*numbered(4))
    assert (place, outcome.error.kind_value) == (2, TIMEOUT)
    assert batch.printed == ["1", "2"]


def test_one_that_takes_long_is_told_to_python_before_it_ends():
    """So that nobody has to wait for it who comes after it."""
    source = "function handle(b) if b.n == 2 then for i = 1, 2e7 do end end print(b.n) end"
    batch = Batch(source, last=2)
    assert batch.run(*numbered(4)) == (0, None)
    assert batch.turns == [1, 2]
    assert batch.printed == ["1", "2"]


def test_interrupting_the_one_at_work_ends_that_one():
    batch = Batch("function handle(b) print(b.n) if b.n == 2 then while true do end end end", timeout=60.0)
    asked = batch._turn

    def turn(place: int) -> bool:
        last = asked(place)
        if place == 2 and batch.invocation:
            batch.invocation.interrupt(HandlerError("stop", CANCELED))
        return last

    batch._turn = turn  # type: ignore[method-assign] # the worker's interrupt comes from another thread
    place, outcome = batch.run(*numbered(4))
    assert (place, outcome.error.text) == (2, "stop")


def test_memory_that_runs_out_is_the_failure_of_the_one_that_used_it():
    batch = Batch(
        "function handle(b) print(b.n)"
        " if b.n == 2 then local t = {} while true do t[#t + 1] = ('x'):rep(1e5) end end end",
        memory_limit=2 * KB * KB,
    )
    place, outcome = batch.run(*numbered(4))
    assert (place, outcome.state_lost) == (2, True)
    assert outcome.error.detail_values == {"reason": "out_of_memory"}
    assert batch.printed == ["1", "2"]


def test_a_success_after_python_refused_a_value_for_lack_of_memory_does_not_count():
    batch = Batch(
        "function handle(b) if b.n == 2 then x = json.decode(b.text) end end", memory_limit=2 * KB * KB
    )
    text = "[" + "1.5," * 400_000 + "1]"
    place, outcome = batch.run({"n": 1, "text": ""}, {"n": 2, "text": text}, {"n": 3, "text": ""})
    assert (place, outcome.error and outcome.error.detail_values) == (2, {"reason": "out_of_memory"})


def test_bodies_that_do_not_fit_start_nothing():
    batch = Batch("function handle(b) print(b.n) end", memory_limit=2 * KB * KB)
    bodies = [{"n": n, "text": "x" * (KB * KB)} for n in range(4)]
    batch.learn(bodies[0])
    packed: list[Any] = []
    for body in bodies:
        assert batch.state.pack(body, packed)
    with pytest.raises(NoRoomError):
        batch.state.start_batch(4, packed, 4 * KB * KB, lambda _: False)
    assert batch.printed == []
    assert batch.run({"n": 9, "text": ""}) == (0, None)


def test_coroutines_of_one_message_end_with_it():
    batch = Batch(
        "function handle(b)"
        " if b.n == 2 then coroutine.spawn(function() print(b.n) end) time.sleep('1ms') end end"
    )
    place, outcome = batch.run(*numbered(3))
    assert place == 2
    while not isinstance(outcome, Finished):
        assert batch.invocation
        outcome = batch.invocation.step()
    assert outcome is SUCCEEDED
    assert batch.printed == ["2"]


@pytest.mark.parametrize(
    "body",
    [[1], "text", 1, None, {}, {"n": "\ud800"}, {1: 2}],
    ids=["list", "text", "number", "nothing", "empty", "half a pair", "no text as a key"],
)
def test_what_has_no_shape_is_not_for_a_batch(body: Any):
    state = load("function handle() end")
    packed: list[Any] = []
    assert [state.pack(body, packed) for _ in range(3)] == [False] * 3
    assert packed == []


def test_only_what_is_started_is_learnt_from():
    """Ever new shapes would use up the room for those that come again."""
    state = load("function handle() end")
    packed: list[Any] = []
    assert [state.pack({"n": 1}, packed) for _ in range(3)] == [False] * 3
    assert packed == []
    for _ in range(2):
        state.start(MessageContext("1"), {"n": 1}).step()
    assert state.pack({"n": 1}, packed)
    assert packed[1:] == [1]


def test_values_of_every_kind_arrive_as_they_would_alone():
    body = {"i": 2**63, "f": 0.5, "s": "ü", "t": True, "n": None, "l": [1, {"k": [None]}], "o": {}}
    shown = "function handle(b) local text = json.encode(b) print(text) end"
    batch = Batch(shown)
    assert batch.run(body, body) == (0, None)
    alone = FakeHost()
    state = load(shown, host=alone)
    for _ in range(2):
        assert state.start(MessageContext("1"), body).step() is SUCCEEDED
    texts = [json.loads(text) for text in (*batch.printed, *alone.printed())]
    assert texts == [texts[0]] * 4
    assert texts[0]["s"] == "ü"
