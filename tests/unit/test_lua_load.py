"""Loading handlers and libraries: which function is the handler (lua-api.md 2.6), modules, and what fails."""

from __future__ import annotations

import pytest
from lua_driver import Clock, FakeHost, load

from lunaq_runtime.entries.model import Handler
from lunaq_runtime.lua.check import load_error
from lunaq_runtime.lua.requests import Finished
from lunaq_runtime.lua.state import KNOWN_MODULES, HandlerLoadError, MessageContext


def printed(source: str, body: object = None, **fields: object) -> list[str]:
    host = FakeHost()
    state = load(source, host=host, **fields)
    finished = state.start(MessageContext("1"), body).step()
    assert finished == Finished(), getattr(finished, "error", None)
    return host.printed()


@pytest.mark.parametrize(
    ("source", "method"),
    [
        ("return function() print('here') end", ""),
        ("return function() print('here') end", "whatever"),
        ("return {handle_email = function() print('here') end}", "handle_email"),
        ("function handle_email() print('here') end", "handle_email"),
        ("function handle() print('here') end", ""),
        ("function handler() print('here') end", ""),
        ("function main() print('here') end", ""),
        ("function main() end function handler() end function handle() print('here') end", ""),
        ("return {main = function() print('here') end}", ""),
    ],
)
def test_the_handler_is_found(source: str, method: str):
    assert printed(source, method=method) == ["here"]


@pytest.mark.parametrize(
    ("source", "method", "text"),
    [
        ("", "handle_email", "app.lua: no handler: there is no global function 'handle_email'"),
        ("", "", "app.lua: no handler: there is no global function 'handle' or 'handler' or 'main'"),
        (
            "return {other = print}",
            "x",
            "app.lua: no handler: the table that the chunk returns has no function 'x'",
        ),
        ("return {x = 5}", "x", "app.lua: no handler: the table that the chunk returns has no function 'x'"),
        ("function x() end return {}", "x", "no handler: the table that the chunk returns has no function"),
        ("return setmetatable({}, {__index = {x = print}})", "x", "has no function 'x'"),
        ("return 5", "x", "app.lua: no handler: the chunk returns a number"),
        ("x = = 1", "", "app.lua:1: unexpected symbol near '='"),
        ("\n\nerror('at load')", "", "app.lua:3: at load"),
        ("error(errors.new('as object'))", "", "app.lua: as object"),
        ("\nlocal x: number = 1", "", "app.lua:2: .*type annotations are not supported"),
        ("\x1bLuaR", "", "app.lua: attempt to load a binary chunk"),
        (
            "local t = {} while true do t[#t + 1] = ('x'):rep(1e5) .. #t end",
            "",
            "app.lua: loading needs more than its",
        ),
    ],
)
def test_a_handler_that_does_not_load_says_why(source: str, method: str, text: str):
    with pytest.raises(HandlerLoadError, match=text):
        load(source, method=method)


def test_a_chunk_that_never_ends_is_stopped_by_the_time_limit():
    with pytest.raises(HandlerLoadError, match=r"app\.lua: the handler exceeded its time limit of 0\.05s"):
        load("while true do pcall(function() while true do end end) end", timeout=0.05)


def test_the_chunk_runs_once_per_state():
    host = FakeHost()
    state = load("print('loaded') function handle() print('run') end", host=host)
    for number in range(3):
        state.start(MessageContext(str(number)), None).step()
    assert host.printed() == ["loaded", "run", "run", "run"]


def test_a_handler_receives_exactly_the_body():
    assert printed("function handle(...) print(select('#', ...), (...)) end", 5) == ["1 5"]


# Libraries ------------------------------------------------------------------------------------------------

EMAIL = ("email.lua", "return {send = function(to) print('to ' .. to) end}")


def test_a_library_is_a_global_and_comes_through_require():
    assert printed(
        "local same = require('email') == email function handle() email.send('a') print(same) end",
        imports={"email": EMAIL},
    ) == ["to a", "true"]


def test_libraries_run_once_and_may_use_modules_and_each_other():
    assert printed(
        "require('first') function handle() print(first.name, second.name) end",
        imports={
            "first": ("first.lua", "print('first') return {name = require('second').name .. '+'}"),
            "second": ("second.lua", "print('second') return {name = type(json.encode)}"),
        },
    ) == ["first", "second", "function+ function"]


def test_a_library_may_define_its_global_instead_of_returning_a_table():
    source = "email = {send = print}"
    assert printed("function handle() email.send('x') end", imports={"email": ("email.lua", source)}) == ["x"]


@pytest.mark.parametrize(
    ("imports", "text"),
    [
        ({"a": ("a.lua", "\nreturn = 1")}, "a.lua:2: "),
        ({"a": ("a.lua", "x = 1")}, "a.lua: the library 'a' returns nothing"),
        (
            {"a": ("a.lua", "return require('b')"), "b": ("b.lua", "return require('a')")},
            "import cycle: library 'a' needs itself",
        ),
    ],
)
def test_a_library_that_does_not_load_fails_the_handler(imports: dict[str, tuple[str, str]], text: str):
    with pytest.raises(HandlerLoadError, match=text):
        load("function handle() end", imports=imports)


# Modules --------------------------------------------------------------------------------------------------


def test_all_core_and_useful_modules_are_granted_without_a_list():
    assert printed(
        "function handle() print(require('queue') == queue, require('logger') == logger,"
        " require('json') == json, require('time') == time, require('env') == env) end"
    ) == ["true true true true true"]


def test_a_list_of_modules_restricts_to_it():
    assert printed(
        "function handle() print(json, type(queue.publish), type(errors)) print(pcall(require, 'json')) end",
        modules=("queue",),
    ) == ["nil function table", "false module 'json' not found"]


def test_standard_tables_come_through_require_as_well():
    assert printed(
        "function handle() print(require('string') == string, require('errors') == errors) end"
    ) == ["true true"]


def test_every_module_of_the_contract_is_there():
    for name in KNOWN_MODULES - {"print"}:
        assert printed(f"function handle() print((pcall(require, '{name}'))) end", modules=(name,)) == [
            "true"
        ]


def test_an_unknown_module_is_not_found():
    assert printed("function handle() print(pcall(require, 'nope')) end") == ["false module 'nope' not found"]


# Checking without running -----------------------------------------------------------------------------------


def test_check_compiles_and_does_not_run():
    assert load_error(Handler("app.lua", "error('not run') while true do end")) is None
    assert load_error(Handler("app.lua", "::top:: goto top")) is None


@pytest.mark.parametrize(
    ("source", "imports", "text"),
    [
        ("x = = 1", {}, "app.lua:1: unexpected symbol near '='"),
        ("x = 1", {"lib": ("lib.lua", "\ny =")}, "lib.lua:2: unexpected symbol near <eof>"),
        (
            "\nfunction f(a: string) end",
            {},
            "app.lua:2: ')' expected near ':' (type annotations are not supported: remove them from this line)",  # noqa: E501
        ),
        ("\x1bLua", {}, "app.lua: attempt to load a binary chunk (mode is 't')"),
    ],
)
def test_check_names_file_line_and_cause(source: str, imports: dict[str, tuple[str, str]], text: str):
    assert load_error(Handler("app.lua", source, imports=imports)) == text


@pytest.mark.parametrize(
    "line",
    [
        "local x: number = 1",
        "local x, y: string, number = 'a', 1",
        "local x: {string} = {}",
        "local x: 'a' | 'b' = 'a'",
        "local x: readonly {number} = {}",
        "local x: typeof(y) = y",
        "local x: keyof T = 'a'",
        "local f: fun(x: number): string = print",
        "function f(x: number) end",
        "function f(x, y?: string) end",
        "function f(...: number) end",
        "local function f(a): number return a end",
        "function f(a): (number, string) return a end",
        "function f(a): a is string return true end",
        "function f(a): asserts a is string end",
        "function f<T>(a) return a end",
        "type T = number",
        "export type T = {a: number}",
        "type Pair<A, B> = {A, B}",
        "interface Shape area: number end",
        "interface Square extends Shape end",
        "local y = x :: number",
        "local y = f(x) :: {number}",
        "local y = x as number",
        "return x as T",
        "local y = x!",
        "local y = x!.field",
        "f(x!)",
    ],
)
def test_every_form_of_a_type_annotation_is_refused_with_its_line_and_what_to_do(line: str):
    error = load_error(Handler("app.lua", f"local z = 1\n{line}\nz = 2"))
    assert error is not None
    where = "line 2)" if error.startswith("app.lua:3:") else "this line)"
    assert error.startswith(("app.lua:2: ", "app.lua:3: "))
    assert error.endswith(f"(type annotations are not supported: remove them from {where}")


def test_an_annotated_parameter_on_a_line_of_its_own_is_told_as_well():
    error = load_error(Handler("app.lua", "function f(\n  a: number,\n  b\n) end"))
    assert error is not None
    assert error.startswith("app.lua:2: ")
    assert error.endswith("remove them from this line)")


@pytest.mark.parametrize(
    "line",
    [
        "x = = 1",
        "print('a: number' 5",
        "print('known as T') = 5",
        "if x != y then end",
        "x:method( -- a: number",
        "local x = {a = 1, b = 2 3}",
        "goto = 5 -- x :: T",
    ],
)
def test_other_mistakes_are_not_taken_for_annotations(line: str):
    error = load_error(Handler("app.lua", f"local z = 1\n{line}\nz = 2"))
    assert error is not None
    assert "annotations" not in error


def test_time_limits_use_the_clock_that_was_given():
    clock = Clock()
    state = load("function handle() time.sleep('5s') end", clock=clock, timeout=10.0)
    clock.now = 100.0
    invocation = state.start(MessageContext("1"), None)
    assert invocation.remaining == 10.0
    clock.now = 104.0
    assert invocation.remaining == 6.0
