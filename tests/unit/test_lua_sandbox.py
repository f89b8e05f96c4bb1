"""What a handler cannot reach or change, and what it has beyond standard Lua 5.4 (lua-api.md 4.3)."""

from __future__ import annotations

import pytest
from lua_driver import FakeHost, load, run

from lunaq_runtime.lua.requests import Finished
from lunaq_runtime.lua.state import MessageContext


@pytest.mark.parametrize(
    "expression",
    [
        "python",
        "load",
        "loadstring",
        "loadfile",
        "dofile",
        "collectgarbage",
        "io",
        "debug",
        "package",
        "rawlen",
        "string.dump",
        "os.execute",
        "os.getenv",
        "os.exit",
        "os.remove",
        "os.setlocale",
        "newproxy",
        "warn",
    ],
)
def test_it_is_not_there(expression: str):
    assert run(f"print(({expression}) == nil)").printed == ["true"]


@pytest.mark.parametrize(
    "expression",
    ["''", "string", "errors", "errors.new('x')", "logger", "queue", "queue.message()", "time.now()"],
)
def test_metatables_are_hidden_and_cannot_be_replaced(expression: str):
    assert run(f"print(getmetatable({expression}))").printed == ["false"]
    if expression not in ("''", "errors.new('x')"):
        assert run(f"print((pcall(setmetatable, {expression}, {{}})))").printed == ["false"]


@pytest.mark.parametrize(
    "statement",
    [
        "string.format = 1",
        "table.insert = 1",
        "math.pi = 3",
        "os.time = 1",
        "coroutine.wrap = 1",
        "errors.INVALID = 1",
        "queue.publish = 1",
        "json.new = 1",
        "time.SECOND = 1",
        "logger.info = 1",
        "queue.message().id = 1",
        "process.pid = 1",
        "rawset(string, 'format', 1)",
        "rawset(queue, 'publish', 1)",
        "rawset(logger, 'info', 1)",
        "table.insert(string, 1)",
        "errors.new('x').y = 1",
        "setmetatable({}, {__gc = print})",
    ],
)
def test_it_cannot_be_changed(statement: str):
    error = run(statement).finished.error
    assert error is not None
    assert any(words in error.text for words in ("read-only", "not available"))


def test_iterating_a_library_does_not_hand_out_the_table_behind_it():
    finished = run(
        """
        local _, state = pairs(string)
        print(rawequal(state, string), pcall(function() state.format = nil end))
        local names = {}
        for name in pairs(math) do names[name] = true end
        print(names.floor, names.pi)
        """
    )
    assert finished.printed[0].startswith("true false")
    assert finished.printed[1] == "true true"


@pytest.mark.parametrize(
    "name",
    ["args", "text", "with_traceback", "__class__", "__dict__", "__traceback__", "kind_value", "add_note"],
)
def test_no_attribute_of_a_python_object_is_reachable(name: str):
    assert run(f"print(errors.new('x')['{name}'])").printed == ["nil"]


def test_an_error_object_cannot_be_called_or_iterated():
    printed = run(
        "local e = errors.new('x') print((pcall(function() e() end)), (pcall(function() return #e end)))"
        " print((pcall(next, e)), (pcall(function() return e < e end)), (pcall(function() return e + 1 end)))"
    ).printed
    assert printed == ["false false", "false false false"]


def test_an_error_method_called_with_something_else_says_so():
    error = run("errors.new('x').message('text')").finished.error
    assert error is not None
    assert "needs an error object" in error.text


def test_the_prelude_does_not_depend_on_globals_a_handler_may_destroy():
    host = FakeHost()
    state = load(
        """
        local print, pcall, G, queue, logger, json, errors = print, pcall, _G, queue, logger, json, errors
        local time, uuid, env, security, coroutine, os = time, uuid, env, security, coroutine, os
        local require, string, table, process = require, string, table, process
        for name in pairs(G) do G[name] = nil end
        return function(body)
          local m = queue.message()
          print(m:id(), m:header('k'), m, json.encode(json.decode('{"a":[1,{}]}')))
          logger:named('n'):with({a = 1}):info('x', {b = {1}})
          local e = errors.wrap(errors.new({message = 'm', details = {a = {}}}), 'c')
          print(e, e:stack(), e:details().a, errors.is(e, ''), errors.call_stack(e), 'x' .. e)
          print(uuid.v4(), uuid.validate('x'), env.get('A'), env.get_all().A, env.set('B', 'c'))
          print(security.can('a', 'b'), security.actor():id(), process.pid())
          local d = time.parse_duration('1s')
          local n = time.now()
          print(d, d:seconds(), n:add(d):sub(n), time.date(2024, 1, 1):utc(), n:format('2006-01-02'))
          print(os.time(), os.time({year = 2024, month = 1, day = 1}), string.format('%d', 1.5))
          print(table.isfrozen(table.freeze({1})), pcall(require, 'nope'))
          local w = coroutine.wrap(function() time.sleep(1) coroutine.yield() end)
          w()
          queue.publish('app:emails', {a = {1}}, {k = 'v'})
          queue.info('app:emails')
          m:ack()
        end
        """,
        host=host,
        env={"A": "b"},
    )
    invocation = state.start(MessageContext("1", {"k": "v"}), {"a": 1})
    outcome = invocation.step()
    while not isinstance(outcome, Finished):
        outcome = invocation.step((True, None))
    assert outcome == Finished(settled="ack")


def test_a_handler_that_replaces_globals_never_sees_what_the_prelude_passes_around():
    source = """
    for _, name in ipairs({'setmetatable', 'getmetatable', 'rawset', 'rawget', 'type', 'next', 'pairs',
        'ipairs', 'select', 'tostring', 'error', 'rawequal', 'pcall', 'xpcall', 'unpack'}) do
      local original = _G[name]
      _G[name] = function(...) seen = name return original(...) end
    end
    function handle()
      seen = nil
      local co = coroutine.wrap(function() time.sleep(1) coroutine.yield() end)
      co()
      queue.publish('app:emails', {a = {1}}, {k = 'v'})
      logger:info('x', {a = errors.new('y')})
      local m = queue.message()
      m:header('k')
      local text = json.encode({a = 1})
      queue.publish('app:emails', seen or 'nothing')
    end
    """
    state = load(source)
    invocation = state.start(MessageContext("1"), None)
    requests = [invocation.step()]
    while not isinstance(requests[-1], Finished):
        requests.append(invocation.step((True, None)))
    assert requests[-1] == Finished()
    assert requests[-2].value == "nothing"


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("unpack({1, 2})", "1 2"),
        ("math.pow(2, 3)", "8.0"),
        ("math.log10(1000)", "3.0"),
        ("math.atan2(0, 1)", "0.0"),
        ("math.ldexp(0.5, 3)", "4.0"),
        ("math.frexp(8)", "0.5 4"),
        ("math.mod(7, 3)", "1"),
        ("math.tanh(100), math.sinh(0), math.cosh(0)", "1.0 0.0 1.0"),
        ("table.getn({1, 2})", "2"),
        ("table.maxn({1, [5] = 1})", "5"),
        ("type(table.create(3))", "table"),
        ("string.gfind('ab', 'a')()", "a"),
        ("string.format('%d %i %x', 3.7, -3.7, 255.0)", "3 -3 ff"),
        ("('%5.2f|%s|%%|%d'):format(1.5, nil, 2.9)", " 1.50|nil|%|2"),
        ("string.format('%s %q', {} ~= nil, 'a')", 'true "a"'),
        ("7 // 2, 7 & 3, math.type(1), math.tointeger(3.0)", "3 3 integer 3"),
        ("os.platform, os.difftime(5, 3)", "lunaq 2.0"),
        (
            "os.date('%H', os.time({year = 2024, month = 1, day = 2}))",
            "00",
        ),
        ("os.date('!%Y', 0), math.type(os.time())", "1970 integer"),
        ("utf8.len('ü')", "1"),
    ],
)
def test_the_dialect(expression: str, text: str):
    assert run(f"print({expression})").printed == [text]


def test_a_frozen_table_reads_but_does_not_change():
    printed = run(
        "local t = table.freeze({1, 2, a = 3}) print(#t, t[1], t.a, table.isfrozen(t), table.isfrozen({}))"
        " print((pcall(function() t.a = 1 end)), (pcall(rawset, t, 'a', 1)))"
        " for i, v in ipairs(t) do print(i, v) end"
    ).printed
    assert printed == ["2 1 3 true false", "false false", "1 1", "2 2"]


def test_a_failing_coroutine_raises_through_wrap_and_returns_through_resume():
    printed = run(
        "print(pcall(coroutine.wrap(function() error('x', 0) end)))"
        " print(coroutine.resume(coroutine.create(function() error('y', 0) end)))"
        " print((pcall(coroutine.create, 5)), (pcall(coroutine.resume, 5)))"
    ).printed
    assert printed == ["false x", "false y", "false false"]
