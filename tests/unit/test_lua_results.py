"""What a handler's results mean (lua-api.md 1.6.2), its message (1.5, 1.6) and settling it (1.6.1)."""

from __future__ import annotations

import pytest
from lua_driver import FakeHost, load, run

from lunaq_runtime.entries.model import Handler
from lunaq_runtime.lua.errors import INTERNAL, INVALID, HandlerError
from lunaq_runtime.lua.requests import Finished, Publish, Settle, Sleep
from lunaq_runtime.lua.state import Identity, LuaState, MessageContext


@pytest.mark.parametrize(
    "result",
    ["", "return", "return nil", "return true", "return 0", "return ''", "return {}", "return nil, nil"],
)
def test_success(result: str):
    assert run(result).finished == Finished()


def test_false_alone_is_a_failure():
    error = run("return false").finished.error
    assert error is not None
    assert (error.text, error.kind_value) == ("the handler returned false", INTERNAL)


def test_false_is_success_where_the_consumer_says_so():
    handler = Handler("app.lua", "function handle() return false end")
    state = LuaState(handler, FakeHost(), identity=Identity("c", "q"), false_is_failure=False)
    assert state.start(MessageContext("1"), None).step() == Finished()


@pytest.mark.parametrize("first", ["nil", "true", "1"])
def test_an_error_object_as_second_value_is_a_failure_with_all_it_says(first: str):
    error = run(
        f"return {first}, errors.new"
        "{message = 'm', kind = 'Conflict', retryable = true, details = {a = 1}}"
    ).finished.error
    assert error is not None
    assert (error.text, error.kind_value, error.is_retryable, error.detail_values) == (
        "m",
        "Conflict",
        True,
        {"a": 1},
    )


@pytest.mark.parametrize("first", ["nil", "true"])
def test_a_text_as_second_value_is_an_internal_failure_not_worth_a_retry(first: str):
    error = run(f"return {first}, 'went wrong'").finished.error
    assert error is not None
    assert (error.text, error.kind_value, error.is_retryable) == ("went wrong", INTERNAL, False)


@pytest.mark.parametrize(("second", "kind"), [("{}", "table"), ("5", "number"), ("true", "boolean")])
def test_any_other_second_value_is_success_with_a_warning(second: str, kind: str):
    host = FakeHost()
    assert run(f"return 1, {second}", host=host).finished == Finished()
    assert [(level, kind in message) for level, message, _, _ in host.records] == [("warn", True)]


def test_false_with_a_second_value_that_is_no_error_is_still_a_failure():
    assert run("return false, {}").finished.error is not None


def test_an_error_object_returned_alone_is_a_failure():
    error = run("return errors.new('oops')").finished.error
    assert error is not None
    assert error.text == "oops"


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("error('boom')", "app.lua:1: boom"),
        ("error('boom', 0)", "boom"),
        ("error({message = 'in a table'})", "in a table"),
        ("error({})", "the error is a table without a text `message`"),
        ("error()", "nil"),
        ("local t; t.x = 1", "app.lua:1: attempt to index a nil value (local 't')"),
        (
            "coroutine.yield()",
            "app.lua:1: attempt to yield from outside a coroutine: wait with time.sleep or a channel",
        ),
    ],
)
def test_raising_is_a_failure(statement: str, text: str):
    finished = run(statement).finished
    assert finished.error is not None
    assert (finished.error.text, finished.error.kind_value) == (text, INTERNAL)
    assert not finished.state_lost


def test_a_raised_text_carries_the_lua_stack():
    error = run("\nlocal function inner() error('x') end\ninner()").finished.error
    assert error is not None
    assert any("app.lua:2" in frame for frame in error.frames)
    assert any("app.lua:3" in frame for frame in error.frames)


def test_a_raised_error_object_arrives_as_it_was():
    error = run("error(errors.new{message = 'm', kind = 'NotFound', retryable = false})").finished.error
    assert error is not None
    assert (error.text, error.kind_value, error.is_retryable) == ("m", "NotFound", False)


def test_a_step_after_the_end_returns_the_same_end():
    invocation = load("function handle() return nil, 'x' end").start(MessageContext("1"), None)
    assert invocation.step() is invocation.step()


def test_a_state_refuses_a_second_message_while_one_is_open():
    state = load("function handle() time.sleep('1s') end")
    invocation = state.start(MessageContext("1"), None)
    assert invocation.step() == Sleep(1.0)
    with pytest.raises(RuntimeError, match="one message at a time"):
        state.start(MessageContext("2"), None)


# The message --------------------------------------------------------------------------------------------


def test_there_is_no_message_while_the_chunk_loads():
    host = FakeHost()
    load(
        "local m, err = queue.message() print(m, err:message(), err:kind(), err:retryable())"
        " function handle() end",
        host=host,
    )
    assert host.printed() == [f"nil no delivery found in context {INVALID} false"]


def test_a_message_tells_its_id_and_headers():
    printed = run(
        """
        local m, err = queue.message()
        print(m, err)
        print(m:id(), select('#', m:id()))
        print(m:header('priority'), m:header('n') + 1, m:header('list')[2], m:header('off'))
        print(m:header('missing'))
        local h = m:headers()
        h.priority = 'changed'
        print(m:headers().priority, h.priority)
        """,
        context=MessageContext("id-7", {"priority": "high", "n": 4, "list": [1, "two"], "off": False}),
    ).printed
    assert printed == [
        "queue.Message{id=id-7} nil",
        "id-7 2",
        "high 5 two false nil",
        "nil nil",
        "high changed",
    ]


def test_a_message_without_id_or_headers_has_an_empty_text_and_an_empty_table():
    printed = run(
        "local m = queue.message() print('<' .. m:id() .. '>', next(m:headers()))",
        context=MessageContext(""),
    ).printed
    assert printed == ["<> nil"]


def test_a_header_key_that_is_no_string_raises():
    error = run("queue.message():header(5)").finished.error
    assert error is not None
    assert "bad argument #1 to 'header' (string expected, got number)" in error.text


def test_a_message_method_called_with_a_dot_says_so():
    error = run("queue.message().ack()").finished.error
    assert error is not None
    assert "call it with a colon" in error.text


def test_the_first_settle_wins_and_later_ones_send_nothing():
    finished = run(
        """
        local m = queue.message()
        print(m:ack())
        print(m:ack())
        local ok, err = queue.message():nack()
        print(ok, err:message(), err:kind(), err:retryable())
        return true
        """
    )
    assert finished.requests == [Settle(ack=True)]
    assert finished.finished == Finished(settled="ack")
    assert finished.printed == [
        "true nil",
        "nil queue.Message already settled",
        f"nil queue.Message already settled {INVALID} false",
    ]


def test_nack_then_success_stays_nacked():
    finished = run("queue.message():nack() return true")
    assert finished.requests == [Settle(ack=False)]
    assert finished.finished == Finished(settled="nack")


def test_ack_then_raise_stays_acked_and_the_error_is_told():
    finished = run("queue.message():ack() error('late')").finished
    assert finished.settled == "ack"
    assert finished.error is not None
    assert finished.error.text == "app.lua:1: late"


def test_a_settle_that_the_broker_refuses_keeps_the_slot_claimed():
    finished = run(
        "local m = queue.message() local ok, err = m:ack() print(ok, err:message()) print(err:stack())"
        " print(m:ack())",
        replies=[(None, HandlerError("connection lost", INTERNAL, retryable=False))],
    )
    assert finished.requests == [Settle(ack=True)]
    assert finished.printed == [
        "nil connection lost",
        "ack failed\nconnection lost",
        "nil queue.Message already settled",
    ]
    assert finished.finished.settled == "ack"


def test_a_message_kept_for_the_next_one_is_released():
    host = FakeHost()
    state = load(
        """
        function handle(first)
          if first then kept = queue.message() return end
          for _, name in ipairs({'id', 'header', 'headers', 'ack', 'nack'}) do
            local value, err = kept[name](kept, 'x')
            print(value, err:message(), err:kind(), err:retryable())
          end
          print(kept)
        end
        """,
        host=host,
    )
    assert state.start(MessageContext("1"), True).step() == Finished()
    assert state.start(MessageContext("2"), False).step() == Finished()
    assert host.printed() == [f"nil queue.Message released {INVALID} false"] * 5 + ["queue.Message{released}"]


def test_an_abort_releases_the_message_and_the_state_goes_on():
    state = load("function handle(b) if b then queue.message():ack() time.sleep('1h') end return 1 end")
    invocation = state.start(MessageContext("1"), True)
    assert invocation.step() == Settle(ack=True)
    assert invocation.step((True, None)) == Sleep(3600.0)
    error = HandlerError("shutting down")
    assert invocation.abort(error) == Finished(error, settled="ack")
    assert invocation.step() == Finished(error, settled="ack")
    assert state.start(MessageContext("2"), False).step() == Finished()


# Handler forms and survival -------------------------------------------------------------------------------


def test_globals_survive_between_messages_of_a_state_and_are_not_shared_between_states():
    source = "count = 0 function handle() count = count + 1 queue.publish('app:emails', count) end"
    host = FakeHost()

    def values(state: LuaState, times: int) -> list[object]:
        seen = []
        for _ in range(times):
            invocation = state.start(MessageContext("1"), None)
            request = invocation.step()
            assert isinstance(request, Publish)
            seen.append(request.value)
            invocation.step((True, None))
        return seen

    assert values(load(source, host=host), 3) == [1, 2, 3]
    assert values(load(source, host=host), 1) == [1]


def test_integers_survive_the_handler_unchanged():
    finished = run(
        "queue.publish('app:emails', {n = body.n, same = body.n == 9007199254740993})", {"n": 2**53 + 1}
    )
    assert finished.requests[0].value == {"n": 9007199254740993, "same": True}


def test_decoded_tables_are_real_tables():
    printed = run(
        "print(type(body), #body.list, body.list[2]) for i, v in ipairs(body.list) do print(i, v) end"
        " local keys = {} for k in pairs(body) do keys[#keys + 1] = k end table.sort(keys)"
        " print(table.concat(keys, ','))",
        {"list": ["a", "b"], "x": {}},
    ).printed
    assert printed == ["table 2 b", "1 a", "2 b", "list,x"]
