"""`queue.publish` and `queue.info`: every row of lua-api.md 1.1.1 and 1.7, their order, and the headers."""

from __future__ import annotations

from typing import Any

import pytest
from lua_driver import FakeHost, load, run

from lunaq_runtime.lua.errors import INTERNAL, INVALID, PERMISSION_DENIED, HandlerError
from lunaq_runtime.lua.requests import Info, Publish
from lunaq_runtime.lua.state import MessageContext

SHOW = """
print(ok == nil and "nil" or tostring(ok))
if err then
  print(err:message(), "|", err:kind(), "|", tostring(err:retryable()))
end
"""

GENERAL = ("queue.publish", "")
TO_EMAILS = ("queue.publish.queue", "app:emails")


def outcome(call: str, **given: Any) -> tuple[list[str], list[Any]]:
    finished = run(f"local ok, err = {call} {SHOW}", **given)
    assert finished.finished.error is None
    return finished.printed, finished.requests


def refusal(call: str, **given: Any) -> str:
    printed, requests = outcome(call, **given)
    assert requests == []
    assert printed[0] == "nil"
    return printed[1]


def test_row_1_publishing_while_the_chunk_loads_has_no_context():
    host = FakeHost()
    load(f"local ok, err = queue.publish('app:emails', 1) {SHOW} function handle() end", host=host)
    assert host.printed() == ["nil", f"no context | {INVALID} | false"]
    assert host.asked == []


def test_row_2_the_general_permission_is_checked_before_any_argument():
    host = FakeHost(denied=(GENERAL,))
    expected = f"queue publishing not allowed | {PERMISSION_DENIED} | false"
    assert refusal("queue.publish()", host=host) == expected
    assert host.asked == [GENERAL]


@pytest.mark.parametrize("call", ["queue.publish()", "queue.publish('')", "queue.publish('', {})"])
def test_rows_4_and_6_a_queue_id_is_required_before_the_queue_permission_is_asked(call: str):
    host = FakeHost(denied=(("queue.publish.queue", ""),))
    assert refusal(call, host=host) == f"queue ID required | {INVALID} | false"
    assert host.asked == [GENERAL]


@pytest.mark.parametrize(("value", "kind"), [("nil", "nil"), ("{}", "table"), ("true", "boolean")])
def test_row_5_an_id_that_is_no_string_raises_at_the_callers_line(value: str, kind: str):
    finished = run(f"\nqueue.publish({value}, 1)").finished
    assert finished.error is not None
    assert finished.error.text.startswith(
        f"app.lua:2: bad argument #1 to 'publish' (string expected, got {kind})"
    )


def test_row_5_comes_after_the_general_permission():
    assert refusal("queue.publish({}, 1)", host=FakeHost(denied=(GENERAL,))).startswith(
        "queue publishing not allowed"
    )


def test_row_5_a_number_counts_as_its_text():
    _, requests = outcome("queue.publish(42, 'x')")
    assert requests == [Publish("42", "x", {})]


def test_row_7_the_queue_permission_is_checked_before_the_data():
    host = FakeHost(denied=(TO_EMAILS,))
    expected = f"not allowed to publish to queue: app:emails | {PERMISSION_DENIED} | false"
    assert refusal("queue.publish('app:emails')", host=host) == expected
    assert host.asked == [GENERAL, TO_EMAILS]


def test_a_denied_publish_says_how_to_grant_it():
    printed = run(
        "local _, err = queue.publish('app:emails', 1) print(err:details().resource, err:details().hint)",
        host=FakeHost(denied=(TO_EMAILS,)),
    ).printed
    assert printed[0].startswith("app:emails grant ")


@pytest.mark.parametrize("call", ["queue.publish('app:emails')", "queue.publish('app:emails', nil)"])
def test_row_8_data_is_required_and_nil_is_none(call: str):
    assert refusal(call) == f"message data required | {INVALID} | false"


@pytest.mark.parametrize("data", ["{}", "''"])
def test_row_9_an_empty_table_or_text_is_empty_data(data: str):
    assert (
        refusal(f"queue.publish('app:emails', {data})") == f"message data cannot be empty | {INVALID} | false"
    )


@pytest.mark.parametrize(
    ("data", "value"),
    [("0", 0), ("false", False), ("'x'", "x"), ("{0}", [0]), ("{a = {}}", {"a": []}), ("1.5", 1.5)],
)
def test_what_is_not_empty_is_published(data: str, value: Any):
    printed, requests = outcome(f"queue.publish('app:emails', {data})")
    assert requests == [Publish("app:emails", value, {})]
    assert printed == ["true"]


@pytest.mark.parametrize("name", ["CC", "BCC"])
def test_headers_that_route_on_their_own_are_refused(name: str):
    text = refusal(f"queue.publish('app:emails', 1, {{{name} = 'other'}})")
    assert text.startswith(f"header '{name}' is not allowed")
    assert text.endswith(f"| {INVALID} | false")


@pytest.mark.parametrize(
    ("setup", "reason"),
    [
        ("local t = {} t.self = t", "recursive nesting"),
        ("local t = {} for i = 1, 130 do t = {t} end", "maximum depth of 128"),
        ("local t = {[{}] = 1}", "key of type table"),
    ],
)
def test_row_11_data_that_cannot_be_copied_is_a_failed_publish(setup: str, reason: str):
    finished = run(
        f"{setup} local ok, err = queue.publish('app:emails', t) {SHOW}"
        " print(err:details().reason, err:stack())"
    )
    assert finished.requests == []
    shown = finished.printed[1]
    assert reason in shown
    assert shown.endswith(f"| {INTERNAL} | true")
    assert finished.printed[2].startswith("encode_failed publish failed\n")


def test_row_11_a_reply_with_an_error_is_returned_and_the_words_publish_failed_are_only_in_its_stack():
    error = HandlerError("queue not found", INTERNAL, retryable=True, details={"reason": "queue_not_found"})
    finished = run(
        f"local ok, err = queue.publish('nowhere', 1) {SHOW} print(tostring(err)) print(err:stack())",
        replies=[(None, error)],
    )
    assert finished.requests == [Publish("nowhere", 1, {})]
    assert finished.printed == [
        "nil",
        f"queue not found | {INTERNAL} | true",
        "queue not found",
        "publish failed\nqueue not found",
    ]


def test_a_malformed_id_is_not_refused_as_such():
    _, requests = outcome("queue.publish('no namespace', 1)")
    assert requests == [Publish("no namespace", 1, {})]


def test_data_is_copied_when_it_is_published():
    finished = run("local t = {1} queue.publish('app:emails', t) t[1] = 2 queue.publish('app:emails', t)")
    assert [request.value for request in finished.requests] == [[1], [2]]


def test_values_survive_the_way_out_and_back():
    value = {
        "exact": 9007199254740993,
        "low": -(2**63),
        "float": 0.5,
        "text": "ünï",
        "bytes": b"\xff\x00",
        "yes": True,
        "no": False,
        "list": [1, [2], {"a": "b"}],
        "empty list": [],
        "empty object": {},
    }
    assert run("queue.publish('app:emails', body)", value).requests == [Publish("app:emails", value, {})]


def test_what_lua_cannot_hold_is_changed_on_the_way_in():
    finished = run("queue.publish('app:emails', body)", {"null": None, "huge": 2**64, "kept": 1})
    assert finished.requests[0].value == {"huge": float(2**64), "kept": 1}


def test_functions_and_own_objects_are_null_and_errors_are_their_text():
    finished = run(
        "queue.publish('app:emails', {f = print, m = queue.message(), l = logger,"
        " e = errors.wrap(errors.new('inner'), 'outer')})"
    )
    assert finished.requests[0].value == {"f": None, "m": None, "l": None, "e": "outer: inner"}


def test_a_frozen_table_is_published_like_any_other():
    assert run("queue.publish('app:emails', table.freeze({1, 2}))").requests[0].value == [1, 2]


def test_a_large_table_arrives_whole():
    finished = run("local t = {} for i = 1, 20000 do t[i] = i end queue.publish('app:emails', t, {n = 1})")
    assert finished.requests == [Publish("app:emails", list(range(1, 20001)), {"n": 1})]


def test_headers_of_all_four_types_are_kept_under_their_names():
    finished = run(
        "queue.publish('app:emails', 1, {s = 'text', i = 3, f = 1.5, whole = 2.0, t = true, n = false,"
        " priority = 'high', ['sqs.x'] = 'y', ['amqp.z'] = 'w', partition_key = 'k', ['amqp.priority'] = 0})"
    )
    headers = finished.requests[0].headers
    assert headers == {
        "s": "text",
        "i": 3,
        "f": 1.5,
        "whole": 2.0,
        "t": True,
        "n": False,
        "priority": "high",
        "sqs.x": "y",
        "amqp.z": "w",
        "partition_key": "k",
        "amqp.priority": 0,
    }
    assert type(headers["whole"]) is float
    assert type(headers["i"]) is int


@pytest.mark.parametrize("headers", ["'text'", "5", "true", "nil", "print"])
def test_a_headers_argument_that_is_no_table_is_ignored(headers: str):
    assert run(f"queue.publish('app:emails', 1, {headers})").requests == [Publish("app:emails", 1, {})]


def test_header_keys_that_are_no_strings_are_ignored_silently():
    host = FakeHost()
    assert run("queue.publish('app:emails', 1, {5, [true] = 1, k = 'v'})", host=host).requests[0].headers == {
        "k": "v"
    }
    assert host.records == []


@pytest.mark.parametrize(
    "entry",
    [
        "t = {}",
        "t = print",
        "t = errors.new('x')",
        "x_original_queue = 'a'",
        "x_anything = 1",
        "attempts = 9",
        "['x-death'] = 'a'",
        "['x-delivery-count'] = 5",
        "['x-first-death-queue'] = 'a'",
    ],
)
def test_headers_that_may_not_travel_are_dropped_with_a_warning(entry: str):
    host = FakeHost()
    finished = run(f"queue.publish('app:emails', 1, {{{entry}, k = 'v'}})", host=host)
    assert finished.requests[0].headers == {"k": "v"}
    level, message, fields, _ = host.records[0]
    assert level == "warn"
    assert "is dropped" in message
    assert fields["message_id"] == "id-1"


def test_publish_works_through_pcall_and_user_coroutines_without_touching_the_users_yields():
    finished = run(
        """
        local function inner()
          local got = coroutine.yield('a')
          local ok, result = pcall(queue.publish, 'app:emails', got)
          coroutine.yield(tostring(ok) .. tostring(result))
          return 'end'
        end
        local outer = coroutine.wrap(function()
          local co = coroutine.create(inner)
          print(coroutine.resume(co))
          print(coroutine.resume(co, 'sent'))
          print(coroutine.resume(co))
          print(coroutine.resume(co))
          coroutine.yield('outer')
        end)
        print(outer())
        """
    )
    assert finished.requests == [Publish("app:emails", "sent", {})]
    assert finished.printed == [
        "true a",
        "true truetrue",
        "true end",
        "false cannot resume dead coroutine",
        "outer",
    ]


def test_a_coroutine_kept_from_an_aborted_message_cannot_be_resumed_with_a_forged_reply():
    host = FakeHost()
    state = load(
        """
        local kept
        return function(first)
          if first then
            kept = coroutine.create(function() print('reply', queue.publish('app:emails', 1)) end)
            coroutine.resume(kept)
          else
            print(coroutine.resume(kept, true, true))
          end
        end
        """,
        host=host,
    )
    first = state.start(MessageContext("1"), True)
    assert isinstance(first.step(), Publish)
    first.abort(HandlerError("stop"))
    assert state.start(MessageContext("2"), False).step().error is None
    assert host.printed() == [
        "false cannot resume a coroutine that waits in a blocking call or was made by coroutine.spawn"
    ]


def test_info_checks_its_argument_and_returns_the_workers_table():
    printed, requests = outcome("queue.info()")
    assert (printed, requests) == (["nil", f"queue ID required | {INVALID} | false"], [])
    assert refusal("queue.info('')") == f"queue ID required | {INVALID} | false"
    error = run("queue.info({})").finished.error
    assert error is not None
    assert "bad argument #1 to 'info' (string expected, got table)" in error.text
    finished = run(
        "local info = queue.info('app:emails') print(type(info), info.ready + 1)",
        replies=[({"ready": 3, "message_count": 3}, None)],
    )
    assert finished.requests == [Info("app:emails")]
    assert finished.printed == ["table 4"]


def test_info_is_denied_where_the_policy_says_no():
    host = FakeHost(denied=(("queue.info", "app:emails"),))
    finished = run("local info, err = queue.info('app:emails') print(info, err:kind(), err)", host=host)
    assert finished.printed == ["nil PermissionDenied not allowed: queue.info on app:emails"]
    assert finished.requests == []


@pytest.mark.parametrize(
    "data",
    [
        "{a = 1}",
        "{a = 'text', b = 1.5, c = true, d = false, e = -0.0, f = 1/0, g = math.mininteger}",
        "{['not \\xff UTF-8'] = 1}",
        "{a = 'not \\xff UTF-8', b = 'text'}",
        "{[''] = '', ['\\0'] = '\\0'}",
        "{1, 2, 3}",
        "{1, nil, 3}",
        "{[1] = 'one', one = 1}",
        "{[1.5] = 1}",
        "{[true] = 1}",
        "{a = {b = {}}}",
        "{a = function() end}",
        "{a = errors.new('an error')}",
        "setmetatable({a = 1}, {__index = {b = 2}})",
        "table.freeze({a = 1})",
        "{a = string.rep('x', 5000)}",
        "many(49)",
        "many(50)",
        "many(51)",
        "many(500)",
    ],
)
def test_a_table_goes_out_the_same_with_and_without_headers(data: str):
    source = f"""
        local function many(count)
          local out = {{}}
          for i = 1, count do out["key" .. i] = i end
          return out
        end
        queue.publish("app:out", {data})
        queue.publish("app:out", {data}, {{}})
        queue.publish("app:out", {{after = "it"}})
    """
    short, long, after = run(source).requests
    assert _shown(short) == _shown(long)
    assert after == Publish("app:out", {"after": "it"}, {})


def _shown(request: Publish) -> tuple[str, Any]:
    """Show a publish so that -0.0 and 0.0, 1 and 1.0, and two equal errors look as they are."""
    ordered = request.value
    if isinstance(ordered, dict):
        ordered = sorted(ordered.items(), key=repr)
    return request.queue_id, repr(ordered)


def test_the_rights_are_asked_in_the_same_order_with_and_without_headers():
    asked = []
    for arguments in ("{a = 1}", "{a = 1}, {}"):
        host = FakeHost()
        run(f'queue.publish("app:out", {arguments})', host=host)
        asked.append(host.asked)
    assert asked[0] == asked[1] == [("queue.publish", ""), ("queue.publish.queue", "app:out")]


@pytest.mark.parametrize("headers", ["", ", {}"])
@pytest.mark.parametrize(
    ("denied", "text"),
    [
        (("queue.publish", ""), "queue publishing not allowed"),
        (("queue.publish.queue", "app:out"), "not allowed to publish to queue: app:out"),
    ],
)
def test_a_denied_publish_of_a_table_is_the_same_with_and_without_headers(
    denied: tuple[str, str], text: str, headers: str
):
    done = run(
        f'local ok, err = queue.publish("app:out", {{a = 1}}{headers}) print(ok, err:kind(), err:message())',
        host=FakeHost(denied=(denied,)),
    )
    assert done.requests == []
    assert done.printed == [f"nil PermissionDenied {text}"]
