"""The `errors` table and error objects (lua-api.md 3.1)."""

from __future__ import annotations

import pytest
from lua_driver import run


def printed(source: str) -> list[str]:
    finished = run(source)
    assert finished.finished.error is None, finished.finished.error
    return finished.printed


@pytest.mark.parametrize(
    ("constant", "value"),
    [
        ("UNKNOWN", ""),
        ("INVALID", "Invalid"),
        ("NOT_FOUND", "NotFound"),
        ("ALREADY_EXISTS", "AlreadyExists"),
        ("PERMISSION_DENIED", "PermissionDenied"),
        ("UNAVAILABLE", "Unavailable"),
        ("INTERNAL", "Internal"),
        ("CANCELED", "Canceled"),
        ("CONFLICT", "Conflict"),
        ("TIMEOUT", "Timeout"),
        ("RATE_LIMITED", "RateLimited"),
    ],
)
def test_the_constants_have_the_values_of_the_contract(constant: str, value: str):
    assert printed(f"print('<' .. errors.{constant} .. '>')") == [f"<{value}>"]


def test_a_new_error_of_a_text_knows_only_its_message():
    source = (
        "local e = errors.new('m') print(e:message(), '<' .. e:kind() .. '>', e:retryable(), e:details())"
    )
    assert printed(source) == ["m <> nil nil"]


def test_a_new_error_of_a_table_takes_what_is_of_the_right_type():
    assert printed(
        """
        local e = errors.new{message = 'm', kind = errors.TIMEOUT, retryable = false,
          details = {a = 1, nested = {x = {1, 2}}, [1] = 'dropped'}}
        print(e:message(), e:kind(), e:retryable(), e:details().a, e:details().nested.x[2], e:details()[1])
        local odd = errors.new{message = 'm', kind = 5, retryable = 'yes', details = 'no'}
        print('<' .. odd:kind() .. '>', odd:retryable(), odd:details())
        """
    ) == ["m Timeout false 1 2 nil", "<> nil nil"]


def test_details_are_copied_in_and_out():
    assert printed(
        """
        local given = {a = {1}}
        local e = errors.new{message = 'm', details = given}
        given.a[1] = 'changed'
        e:details().a[1] = 'changed'
        print(e:details().a[1])
        """
    ) == ["1"]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("errors.new(5)", "bad argument #1 to 'new' (expected string or table)"),
        ("errors.new()", "bad argument #1 to 'new' (expected string or table)"),
        ("errors.new{}", "bad argument #1 to 'new' (message field is required)"),
        ("errors.new{message = 5}", "bad argument #1 to 'new' (message must be a string)"),
        ("errors.wrap(5, 'c')", "bad argument #1 to 'wrap' (expected error or string)"),
        ("errors.wrap('m', 5)", "bad argument #2 to 'wrap' (expected string or error)"),
        ("errors.is('x', 5)", "bad argument #2 to 'is' (string expected, got number)"),
        ("errors.call_stack('x')", "bad argument #1 to 'call_stack' (error expected, got string)"),
    ],
)
def test_a_bad_argument_raises_at_the_callers_line(call: str, text: str):
    error = run(f"\n{call}").finished.error
    assert error is not None
    assert error.text == f"app.lua:2: {text}"


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        ("errors.new('TIMEOUT', 'text')", "Timeout", "text"),
        ("errors.new('Timeout', 'text')", "Timeout", "text"),
        ("errors.new('UNKNOWN', 'text')", "", "text"),
        ("errors.new('some text', 'ignored')", "", "some text"),
        ("errors.new('TIMEOUT')", "", "TIMEOUT"),
        ("errors.new('', 'ignored')", "", ""),
    ],
)
def test_two_texts_are_kind_and_message_where_the_first_names_a_kind(call: str, kind: str, message: str):
    source = f"local e = {call} print('<' .. e:kind() .. '>', '<' .. e:message() .. '>')"
    assert printed(source) == [f"<{kind}> <{message}>"]


def test_wrapping_keeps_message_kind_retryable_and_details_and_adds_context():
    assert printed(
        """
        local e = errors.new{message = 'm', kind = 'Conflict', retryable = true, details = {a = 1}}
        local w = errors.wrap(errors.wrap(e, 'inner'), errors.new('outer'))
        print(w:message(), tostring(w), w:kind(), w:retryable(), w:details().a)
        print((w:stack():gsub('\\n', ' ')))
        print(rawequal(w, e), w == e, e == e)
        """
    ) == ["m m Conflict true 1", "outer inner m \tapp.lua:2: in Lua", "false false true"]


def test_a_text_can_be_wrapped():
    source = "local e = errors.wrap('m', 'c') print(e, errors.is(e, ''), (e:stack():gsub('\\n.*', '')))"
    assert printed(source) == ["m true c"]


@pytest.mark.parametrize(
    ("value", "result"),
    [
        ("errors.new{message = 'm', kind = 'Timeout'}", "true"),
        ("errors.new('m')", "false"),
        ("'Timeout'", "false"),
        ("nil", "false"),
        ("{kind = 'Timeout'}", "false"),
    ],
)
def test_is_is_true_for_error_objects_of_that_kind_only(value: str, result: str):
    assert printed(f"print(errors.is({value}, errors.TIMEOUT))") == [result]


def test_an_error_concatenates_as_its_message():
    source = "local e = errors.new('m') print('a' .. e, e .. 'b', e .. e, 1 .. e, type(e))"
    assert printed(source) == ["am mb mm 1m userdata"]


def test_the_same_object_comes_back_through_pcall_coroutines_and_python():
    assert printed(
        """
        local e = errors.new('m')
        local _, a = pcall(error, e)
        local _, b = pcall(function() error(e) end)
        local _, c = coroutine.resume(coroutine.create(function() error(e) end))
        local _, d = pcall(coroutine.wrap(function() error(e) end))
        print(rawequal(a, e), rawequal(b, e), rawequal(c, e), rawequal(d, e), a:message())
        """
    ) == ["true true true true m"]


def test_texts_and_faults_come_through_pcall_as_texts():
    assert printed(
        "local _, a = pcall(function() error('t') end) local _, b = pcall(function() return nil + 1 end)"
        " print(type(a), a, type(b))"
    ) == ["string app.lua:1: t string"]


def test_the_call_stack_names_sources_lines_and_functions():
    assert printed(
        """
        local function make() return (errors.new('m')) end
        local stack = errors.call_stack(make())
        for _, frame in ipairs(stack.frames) do print(frame.level, frame.source, frame.line, frame.name) end
        print(type(stack.thread), errors.call_stack(errors.new('x')) ~= nil)
        """
    ) == ["0 app.lua 2 make", "1 app.lua 3 Lua", "string true"]


def test_errors_of_bytes_that_are_not_text_are_shown_with_replacements():
    assert printed("print(errors.new('\\xff!'):message() == '\\u{fffd}!')") == ["true"]
