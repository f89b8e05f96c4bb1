"""funcs, ctx and payload: lua-api.md 3.9, with the part of the entries document that feeds them."""

from __future__ import annotations

import pytest
from lua_concurrent import Stage, done, failure, publishes, stage
from lua_driver import FakeHost, consumer_of, load, run

from lunaq_runtime.entries.model import Function
from lunaq_runtime.lua.requests import Finished


def functions(**sources: str) -> dict[str, Function]:
    """Make `app:<name>` of each body of a function `function(a, b)`, at `<name>.lua`."""
    return {
        f"app:{name}": Function(f"{name}.lua", f"return function(a, b) {source}\nend")
        for name, source in sources.items()
    }


def called(source: str, **sources: str) -> list[str]:
    return done(source, functions=functions(**sources))


# call -----------------------------------------------------------------------------------------------------


def test_a_call_returns_the_first_result_and_nil():
    assert called(
        "print(funcs.call('app:f', 1, 'x')) print(funcs.call('app:n'))",
        f="return a .. b, nil, 'third'",
        n="",
    ) == ["1x nil", "nil nil"]


@pytest.mark.parametrize("value", ["true", "false", "1", "1.5", "'x'", "{}", "{a = {1, 2}}", "nil"])
def test_plain_values_go_both_ways(value: str):
    (line,) = called(
        f"local r = funcs.call('app:f', {value}) print((json.encode(r)), (json.encode({value})))",
        f="return a",
    )
    there_and_back, direct = line.split()
    assert there_and_back == direct


def test_an_empty_object_stays_an_object():
    assert called("print((json.encode((funcs.call('app:f', (json.decode('{}')))))))", f="return a") == ["{}"]


def test_arguments_and_results_are_copies():
    assert called(
        """
        local t = {n = 1}
        local r = funcs.call("app:f", t)
        r.n = 5
        print(t.n, r.n, (funcs.call("app:kept")))
        """,
        f="a.n = a.n + 1 return a",
        kept="return 1",
    ) == ["1 5 1"]


def test_functions_and_objects_become_nil_and_errors_stay_errors():
    assert called(
        """
        local err = errors.new("Conflict", "no")
        local r = funcs.call("app:f", {f = print, ch = channel.new(), e = err, n = 1})
        print(r[1], r[2], r[3], r[4])
        print((funcs.call("app:f", print)))
        """,
        f="return a and {tostring(a.f), tostring(a.ch), a.e:kind(), a.n} or 'nothing'",
    ) == ["nil nil Conflict 1", "nothing"]


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("setmetatable({}, {__index = error})", None),
        ("t", "argument 2: cannot copy recursive nesting"),
        ("deep", "argument 2: cannot copy beyond the maximum depth of 128"),
        ("{[print] = 1}", "argument 2: cannot copy a table with a key of type function"),
    ],
)
def test_what_cannot_be_copied_is_invalid(argument: str, reason: str | None):
    (line,) = called(
        f"""
        local t, deep = {{}}, {{}}
        t.t = t
        for i = 1, 200 do deep = {{deep}} end
        local r, err = funcs.call("app:f", 1, {argument})
        print(r, err and err:kind(), err)
        """,
        f="return 'called'",
    )
    if reason is None:
        assert line == "called nil nil"
    else:
        assert line.startswith("nil Invalid ")
        assert reason in line


def test_a_result_that_cannot_be_copied_is_an_internal_error():
    (line,) = called(
        "local r, err = funcs.call('app:f') print(r, err:kind(), err)", f="local t = {} t.t = t return t"
    )
    assert line.startswith("nil Internal the result cannot be handed over: cannot copy recursive nesting")


@pytest.mark.parametrize("call", ["funcs.call", "funcs.async", "executor:call", "executor:async"])
@pytest.mark.parametrize(
    ("identity", "kind", "reason"),
    [
        ("", "Invalid", "function ID required"),
        ("nil", "Invalid", "function ID required"),
        ("''", "Invalid", "function ID required"),
        ("5", "Invalid", "function ID must be a string, not a number"),
        ("'f'", "Invalid", "function ID 'f' needs a namespace and a name, such as app:resize"),
        ("'app:'", "Invalid", "needs a namespace and a name"),
        ("':f'", "Invalid", "needs a namespace and a name"),
        ("'app:other'", "NotFound", "function not found: app:other is not a function of this document"),
        ("'other:f'", "NotFound", "function not found: other:f"),
    ],
)
def test_an_id_that_names_no_function_is_refused(call: str, identity: str, kind: str, reason: str):
    (line,) = called(
        f"local executor = funcs.new() local r, err = {call}({identity}) print(r, err:kind(), err)", f=""
    )
    assert line.startswith(f"nil {kind} ")
    assert reason in line


@pytest.mark.parametrize("call", ["funcs.call", "funcs.async"])
def test_a_function_that_the_policy_denies_is_not_called(call: str):
    host = FakeHost(denied=(("funcs.call", "app:f"),))
    assert run(
        f"local r, err = {call}('app:f') print(r, err:kind(), err) print((funcs.call('app:g')))"
        " print(security.can('funcs.call', 'app:f'), security.can('funcs.call', 'app:g'))",
        functions=functions(f="return 'never'", g="return 'called'"),
        host=host,
    ).printed == ["nil PermissionDenied not allowed: funcs.call on app:f", "called", "false true"]


@pytest.mark.parametrize(
    ("action", "call"),
    [("funcs.context", "with_context({})"), ("funcs.security", "with_actor(security.actor())")],
)
def test_settings_of_a_call_that_the_policy_denies_are_refused(action: str, call: str):
    (line,) = run(
        f"local e, err = funcs.new():{call} print(e, err:kind())", host=FakeHost(denied=((action, ""),))
    ).printed
    assert line == "nil PermissionDenied"


def test_there_is_nothing_to_call_before_there_is_a_message():
    host = FakeHost()
    state = load(
        "local r, err = funcs.call('app:f') print(r, err:kind(), err) function handle() end",
        host=host,
        functions=functions(f=""),
    )
    assert state
    assert host.printed() == ["nil Invalid no context"]


# Errors ---------------------------------------------------------------------------------------------------

STRUCTURED = """errors.new{
  message = "smtp is down", kind = errors.UNAVAILABLE, retryable = true, details = {host = "mx"}}"""


@pytest.mark.parametrize("way", ["return nil, ", "error(", "return "])
def test_an_error_keeps_kind_message_retryable_and_details(way: str):
    end = ")" if way == "error(" else ""
    assert called(
        """
        local r, err = funcs.call("app:f")
        print(r, err:kind(), err:message(), err:retryable(), err:details().host)
        """,
        f=f"{way}{STRUCTURED}{end}",
    ) == ["nil Unavailable smtp is down true mx"]


def test_an_error_is_another_object_without_the_stack():
    assert called(
        """
        local r, err = funcs.call("app:f")
        print(errors.call_stack(err), err:stack():find("f.lua"))
        """,
        f="return nil, errors.wrap(errors.new('inner'), 'context')",
    ) == ["nil nil"]


@pytest.mark.parametrize(
    ("body", "text", "retryable"),
    [
        ("return nil, 'just text'", "just text", "false"),
        ("return true, 'just text'", "just text", "false"),
        ("error('boom', 0)", "boom", "nil"),
        ("error('boom')", "f.lua:1: boom", "nil"),
        ("error({message = 'in a table'})", "in a table", "nil"),
        ("local x = nil .. 'x'", "attempt to concatenate a nil value", "nil"),
    ],
)
def test_a_text_becomes_an_internal_error(body: str, text: str, retryable: str):
    (line,) = called("local r, err = funcs.call('app:f') print(err:kind(), err:retryable(), err)", f=body)
    assert line.startswith(f"Internal {retryable} ")
    assert text in line


def test_a_second_result_that_is_no_error_is_left_out():
    assert called("print(funcs.call('app:f'))", f="return 'x', {1}") == ["x nil"]


def test_an_error_that_the_caller_hands_on_is_the_messages():
    error = (
        stage(
            "local r, err = funcs.call('app:f') return nil, err",
            functions=functions(f=f"error({STRUCTURED})"),
        )
        .run()
        .error
    )
    assert error is not None
    assert (error.text, error.kind_value, error.is_retryable, error.detail_values) == (
        "smtp is down",
        "Unavailable",
        True,
        {"host": "mx"},
    )


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (Function("f.lua", "return function( end"), "f.lua:1: <name> or '...' expected"),
        (Function("f.lua", "error('at load')"), "f.lua:1: at load"),
        (Function("f.lua", "return 5"), "no handler: the chunk returns a number"),
        (Function("f.lua", "return {}", method="go"), "has no function 'go'"),
        (Function("f.lua", "time.sleep('1s') channel.new():receive()"), "this would wait for ever"),
        (Function("f.lua", "return require('nope')"), "module 'nope' not found"),
    ],
)
def test_a_function_that_does_not_load_is_an_internal_error_of_the_call(function: Function, text: str):
    (line,) = done(
        "local r, err = funcs.call('app:f') print(r, err:kind(), err)", functions={"app:f": function}
    )
    assert line.startswith("nil Internal function app:f does not load: ")
    assert text in line


# What a function is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "method"),
    [
        ("return function() return 'called' end", ""),
        ("return {handle = function() return 'called' end}", ""),
        ("return {go = function() return 'called' end}", "go"),
        ("function handler() return 'called' end", ""),
        ("function go() return 'called' end", "go"),
    ],
)
def test_a_function_is_found_as_a_handler_is(source: str, method: str):
    found = {"app:f": Function("f.lua", source, method=method)}
    assert done("print((funcs.call('app:f')))", functions=found) == ["called"]


def test_a_function_has_globals_of_its_own_that_live_as_long_as_the_state():
    counting = Function(
        "f.lua", "count = 0 return function() count = count + 1 return {count, tostring(own)} end"
    )
    running = Stage(
        """
        own = "the caller's"
        function handle()
          local r = funcs.call("app:f")
          print(r[1], r[2], count, _G.count)
        end
        """,
        functions={"app:f": counting},
    )
    assert running.run() == running.run() == Finished()
    assert running.printed == ["1 nil nil nil", "2 nil nil nil"]


def test_a_function_has_its_own_modules_and_imports():
    function = Function(
        "f.lua",
        """
        local helper = require("helper")
        return function() return {helper.name, helper == _G.helper, type(json), type(time), type(errors)} end
        """,
        modules=("json",),
        imports={"helper": ("helper.lua", "return {name = 'helper'}")},
    )
    assert done(
        "local r = funcs.call('app:f') print(r[1], r[2], r[3], r[4], r[5], helper)",
        functions={"app:f": function},
    ) == ["helper true table nil table nil"]


def test_a_module_the_caller_has_is_not_the_functions():
    function = Function(
        "f.lua", "return function() return (select(2, pcall(require, 'queue'))) end", modules=()
    )
    assert done("print((funcs.call('app:f')))", functions={"app:f": function}) == ["module 'queue' not found"]


def test_a_function_sees_and_settles_the_callers_delivery():
    running = stage(
        "print((funcs.call('app:f')))",
        functions=functions(f="local m = queue.message() return m:id() .. tostring((m:ack()))"),
    )
    assert running.run().settled == "ack"
    assert running.printed == ["id-1true"]


def test_a_functions_publish_is_checked_and_made_as_the_callers():
    running = stage("print(funcs.call('app:f'))", functions=functions(f="return queue.publish('app:q', 1)"))
    assert running.run() == Finished()
    assert publishes(running.requests) == ["app:q"]
    assert ("queue.publish.queue", "app:q") in running.host.asked


def test_functions_call_functions_and_themselves():
    assert called(
        "print((funcs.call('app:f', 200)))", f="return a == 0 and 'bottom' or (funcs.call('app:f', a - 1))"
    ) == ["bottom"]


def test_a_function_waits_while_other_coroutines_go_on():
    assert called(
        """
        coroutine.spawn(function() time.sleep("1s") at("other") end)
        at((funcs.call("app:f")))
        """,
        f="time.sleep('2s') return 'slept'",
    ) == ["1.0 other", "2.0 slept"]


def test_a_call_inside_a_plain_coroutine_and_pcall_waits_as_well():
    assert called(
        "local co = coroutine.wrap(function() print(pcall(funcs.call, 'app:f')) end) co()",
        f="time.sleep('1s') return 'slept'",
    ) == ["true slept nil"]


def test_what_a_function_spawned_ends_with_it():
    assert called(
        "print((funcs.call('app:f'))) time.sleep('5s')",
        f="coroutine.spawn(function() time.sleep('1s') print('never') end) time.sleep('1ms') return 'over'",
    ) == ["over"]


def test_an_error_of_what_a_function_spawned_is_the_calls():
    assert called(
        "local r, err = funcs.call('app:f') print(err:kind(), err) time.sleep('5s')",
        f="coroutine.spawn(error, errors.new('Conflict', 'no')) time.sleep('1s') print('never')",
    ) == ["Conflict no"]


def test_a_deadlock_in_a_function_fails_the_message():
    assert failure("funcs.call('app:f')", functions=functions(f="channel.new():receive()")).startswith(
        "deadlock: the handler waits at app.lua:1, its other coroutines (1) at f.lua:1;"
    )


@pytest.mark.parametrize(
    "body",
    ["while true do end", "while true do pcall(error) end", "funcs.call('app:f')", "funcs.async('app:f')"],
)
def test_a_function_runs_within_the_callers_time(body: str):
    finished = run(
        "while true do pcall(funcs.call, 'app:f') end",
        functions=functions(f=body),
        timeout=0.1,
        memory_limit=1 << 30,
    ).finished
    assert finished.error is not None
    assert finished.error.kind_value == "Timeout"


@pytest.mark.parametrize(
    "function",
    [
        Function("f.lua", "return function() return ('x'):rep(1e9) end"),
        Function("f.lua", "local t = {} while true do t[#t + 1] = {} end"),
    ],
)
def test_a_function_runs_within_the_callers_memory(function: Function):
    finished = run(
        "while true do pcall(funcs.call, 'app:f') end",
        functions={"app:f": function},
        memory_limit=4 * 1024 * 1024,
    ).finished
    assert finished.error is not None
    assert "memory limit" in finished.error.text


def test_an_endless_chunk_of_a_function_is_ended_by_the_callers_time():
    finished = run(
        "funcs.call('app:f')", functions={"app:f": Function("f.lua", "while true do end")}, timeout=0.1
    ).finished
    assert finished.error is not None
    assert finished.error.kind_value == "Timeout"


# async ----------------------------------------------------------------------------------------------------


def test_async_calls_overlap_and_their_channels_deliver_payloads():
    assert called(
        """
        local futures = {}
        for i = 1, 3 do futures[i] = funcs.async("app:f", i) end
        for i = 1, 3 do
          local payload, ok = futures[i]:response():receive()
          at(payload:data() .. " " .. tostring(ok))
        end
        print(futures[1]:channel():receive())
        """,
        f="time.sleep('1s') return a * 10",
    ) == ["1.0 10 true", "1.0 20 true", "1.0 30 true", "nil false"]


def test_a_future_can_be_selected_with_a_timeout():
    assert called(
        """
        local future = funcs.async("app:f")
        local r = channel.select{future:response():case_receive(), time.after("1s"):case_receive()}
        at(tostring(r.channel == future:response()))
        """,
        f="time.sleep('1h')",
    ) == ["1.0 false"]


def test_a_pending_future_has_neither_result_nor_error():
    assert called(
        "local f = funcs.async('app:f') print(f:is_complete(), f:is_canceled(), f:result()) print(f:error())",
        f="time.sleep('1h')",
    ) == ["false false nil nil", "nil false"]


def test_a_complete_future_has_its_payload():
    assert called(
        """
        local f = funcs.async("app:f")
        time.sleep("1s")
        local payload, err = f:result()
        print(f:is_complete(), payload:data(), err, f:error())
        """,
        f="return 'v'",
    ) == ["true v nil nil false"]


def test_a_failed_future_has_its_error_and_a_closed_channel_and_harms_nobody():
    assert called(
        """
        local f = funcs.async("app:f")
        print(f:response():receive())
        local payload, err = f:result()
        print(f:is_complete(), payload, err:kind(), err, select(2, f:error()))
        """,
        f="error(errors.new('Conflict', 'no'))",
    ) == ["nil false", "true nil Conflict no true"]


def test_cancel_ends_the_function_where_it_waits_and_drops_its_request():
    running = stage(
        """
        local f = funcs.async("app:f")
        time.sleep("1s")
        print(select("#", f:cancel()))
        print(f:is_canceled(), f:is_complete(), f:result())
        print(f:error():kind(), f:response():receive())
        f:cancel()
        coroutine.spawn(function() queue.publish("app:other", 1) end)
        time.sleep("10s")
        """,
        functions=functions(
            f="""
            coroutine.spawn(function() time.sleep("2s") print("never") end)
            queue.publish("app:q", 1)
            print("never")
            """
        ),
        cost=lambda _request: 5.0,
    )
    assert running.run() == Finished()
    assert running.printed == ["0", "true true nil the call was canceled", "Canceled nil false"]
    assert running.dropped == [1]


def test_canceling_a_call_ends_the_calls_within_it():
    assert (
        called(
            "local f = funcs.async('app:f') time.sleep('1s') f:cancel() time.sleep('1h')",
            f="funcs.call('app:g') print('never')",
            g="coroutine.spawn(function() time.sleep('2s') print('no') end) time.sleep('3s') print('no')",
        )
        == []
    )


def test_cancel_after_the_end_changes_nothing():
    assert called(
        "local f = funcs.async('app:f') time.sleep(1) f:cancel() print(f:is_canceled(), f:result():data())",
        f="return 'v'",
    ) == ["false v"]


def test_async_calls_are_killed_when_the_handler_returns():
    assert called("funcs.async('app:f') time.sleep('1ms')", f="time.sleep('1s') print('never')") == []


@pytest.mark.parametrize(
    "call", ["f.result()", "f.response({})", "f.cancel(funcs.new())", "p.data()", "e.call('app:f')"]
)
def test_a_method_needs_its_object(call: str):
    assert "call it with a colon" in failure(
        f"local f, e = funcs.async('app:f'), funcs.new() local p = f:response():receive() {call}",
        functions=functions(f=""),
    )


# Executors and ctx ----------------------------------------------------------------------------------------


def test_context_values_reach_the_function_and_what_it_calls():
    assert called(
        """
        local executor = funcs.new():with_context({tenant = "blue", n = {1}, [1] = "left out"})
        print((executor:call("app:f")))
        print((funcs.call("app:g")), (json.encode(ctx.all())))
        """,
        f="return (funcs.new():with_context({more = 2}):call('app:g'))",
        g="local t = ctx.all() return (t.tenant or '-') .. (t.more or '-') .. tostring(t.n and t.n[1])",
    ) == ["blue21", "--nil []"]


def test_an_executor_never_changes():
    assert called(
        """
        local one = funcs.new():with_context({k = "one"})
        local two = one:with_context({k = "two"})
        print((one:call("app:f")), (two:call("app:f")), (funcs.new():call("app:f")))
        """,
        f="return (ctx.get('k'))",
    ) == ["one two nil"]


def test_contexts_of_calls_that_overlap_do_not_mix():
    assert called(
        """
        local futures = {}
        for i = 1, 3 do futures[i] = funcs.new():with_context({k = i}):async("app:f") end
        for i = 1, 3 do print(futures[i]:response():receive():data()) end
        print((ctx.get("k")))
        """,
        f="""
        local before = ctx.get("k")
        local seen
        coroutine.spawn(function() time.sleep("1ms") seen = ctx.get("k") end)
        time.sleep("5ms")
        return before .. seen .. ctx.get("k")
        """,
    ) == ["111", "222", "333", "nil"]


def test_a_context_value_is_a_copy():
    assert called(
        "local t = {n = 1} local e = funcs.new():with_context({t = t}) t.n = 2 print((e:call('app:f')))",
        f="ctx.get('t').n = 5 ctx.all().t.n = 6 return ctx.get('t').n",
    ) == ["1"]


@pytest.mark.parametrize(
    ("key", "kind"), [("''", "Invalid"), ("nil", "Invalid"), ("5", "Invalid"), ("'absent'", "NotFound")]
)
def test_ctx_get_of_no_key_or_no_value_returns_an_error(key: str, kind: str):
    assert done(f"local v, err = ctx.get({key}) print(v, err:kind(), err:retryable())") == [
        f"nil {kind} false"
    ]


@pytest.mark.parametrize(("call", "what"), [("with_actor('root')", "actor"), ("with_scope({})", "scope")])
def test_nobody_calls_as_somebody_else(call: str, what: str):
    (line,) = done(f"local e, err = funcs.new():{call} print(e, err:kind(), err)")
    assert line.startswith("nil PermissionDenied not allowed to call ")
    assert what in line


def test_the_consumers_own_actor_and_options_change_nothing():
    assert called(
        "print((funcs.new():with_actor(security.actor()):with_options({a = 1}):call('app:f')))",
        f="return security.actor():id()",
    ) == ["app:consumer"]


@pytest.mark.parametrize("call", ["with_context(1)", "with_context()", "with_options('x')"])
def test_an_executor_refuses_what_is_no_table(call: str):
    assert "(table expected, got" in failure(f"funcs.new():{call}")


def test_payloads_come_from_futures_only():
    assert "payload.new is not available in Lunaq: payloads come from futures" in failure("payload.new(1)")


# The document ---------------------------------------------------------------------------------------------


def test_functions_and_libraries_of_the_document_can_be_called():
    handler = consumer_of(
        {"kind": "function.lua", "name": "f", "source": "return 1", "method": "go", "modules": ["json"]},
        {"kind": "function.lua", "name": "g", "source": "return 2", "imports": {"l": "helper"}},
        {"kind": "library.lua", "name": "helper", "source": "return 3"},
        {"kind": "library.lua", "name": "other:far", "source": "return 4"},
        modules=["queue"],
    ).handler
    assert handler.functions == {
        "app:f": Function("app:f", "return 1", "go", ("json",), {"helper": ("app:helper", "return 3")}),
        "app:g": Function("app:g", "return 2", "", None, {"l": ("app:helper", "return 3")}),
        "app:helper": Function("app:helper", "return 3", "", ("queue",), {}),
        "other:far": Function(
            "other:far", "return 4", "", ("queue",), {"helper": ("app:helper", "return 3")}
        ),
    }
