"""Patterns that can be stopped: the matcher in Lua agrees with Lua's own, and the bound on steps is one.

The files of the prelude are loaded on their own here, once with every pattern sent to our matcher.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from lua_driver import run
from lupa.lua54 import LuaRuntime

from lunaq_runtime.lua.prelude import source_of

_TEXTS = r"a b ab %a %d . [ab] [^a] %% %- - x [%w_] ] []] [a-] $ %s ^"
ATOMS = [*_TEXTS.split(" "), "\0", "\xff"]
SUFFIXES = ("", "", "", "*", "+", "-", "?")
SUBJECT = "aabb ab-x1%$]\0\xff^"

COMPARE = b"""
local own, ours, patterns, subjects = ...
local function shown(ok, ...)
  local out = {tostring(ok), tostring(select('#', ...))}
  for i = 1, select('#', ...) do
    local value = select(i, ...)
    out[#out + 1] = math.type(value) or type(value)
    out[#out + 1] = ok and tostring(value) or ''
  end
  return table.concat(out, '|')
end
local function every(library, s, p)
  local all = {}
  local step = library.gmatch(s, p)
  local captures = table.pack(step())
  while captures[1] ~= nil and #all < 200 do
    all[#all + 1] = shown(true, table.unpack(captures, 1, captures.n))
    captures = table.pack(step())
  end
  return table.concat(all, ';')
end
local replacements = {'<%0>', '[%1]', {a = 'A', b = false}, function(x, y) return y and x or nil end, ''}
local different = {}
for i = 1, #patterns do
  local p, s = patterns[i], subjects[i]
  local function both(what, body)
    local a, b = shown(pcall(body, own)), shown(pcall(body, ours))
    if a ~= b then
      different[#different + 1] = what .. ' ' .. ('%q %q: %s, ours %s'):format(p, s, a, b)
    end
  end
  both('find', function(l) return l.find(s, p) end)
  both('find from 3', function(l) return l.find(s, p, 3) end)
  both('find from -2', function(l) return l.find(s, p, -2) end)
  both('match', function(l) return l.match(s, p) end)
  both('gmatch', function(l) return every(l, s, p) end)
  for _, r in ipairs(replacements) do
    both('gsub', function(l) return l.gsub(s, p, r) end)
  end
  both('gsub twice', function(l) return l.gsub(s, p, '_', 2) end)
end
return different
"""


def _bare(*, slow: bool) -> tuple[LuaRuntime, Any]:
    """Load the string functions of the prelude; with `slow`, no pattern is cheap enough for Lua's own."""
    lua = LuaRuntime(encoding=None)
    own = lua.execute(b"local own = {} for k, v in pairs(string) do own[k] = v end return own")
    shared = lua.execute(
        b"return {look = function() end, limits = {pattern_steps = 1e8},"
        b" bad_argument = function(_, _, text) error(text, 0) end}"
    )
    load = lua.globals()[b"load"]
    load(source_of("patterns"))(shared)
    if slow:
        lua.execute(
            b"local S = ... S.patterns.cache = {} local prepare = S.patterns.prepare"
            b" S.patterns.prepare = function(...) local program, why = prepare(...)"
            b" if program then program.cheap, program.most = -1, -1 end return program, why end",
            shared,
        )
    load(source_of("strings"))(shared)
    return lua, own


def _pattern(choose: random.Random) -> str:
    """Make a well-formed pattern."""
    parts, open_captures, closed = [choose.choice(("", "", "", "^"))], 0, 0
    for _ in range(choose.randint(0, 6)):
        kind = choose.random()
        if kind < 0.12:
            parts.append("(")
            open_captures += 1
        elif kind < 0.2 and open_captures:
            parts.append(")")
            open_captures -= 1
            closed += 1
        elif kind < 0.24:
            parts.append("()")
        elif kind < 0.28:
            parts.append(choose.choice(("%bab", "%b()", "%f[%a]", "%f[^ab]")))
        else:
            parts.append(choose.choice(ATOMS) + choose.choice(SUFFIXES))
    if closed == 1 and open_captures == 0 and "(" in parts and choose.random() < 0.3 and "()" not in parts:
        parts.append("%1")
    return "".join(parts) + ")" * open_captures + choose.choice(("", "", "$"))


@pytest.mark.parametrize("seed", range(4))
def test_our_matcher_agrees_with_that_of_lua(seed: int):
    choose = random.Random(seed)  # noqa: S311 - no secret
    patterns = [_pattern(choose) for _ in range(1500)]
    subjects = ["".join(choose.choices(SUBJECT, k=choose.randint(0, 9))) for _ in patterns]
    lua, own = _bare(slow=True)
    encoded = [lua.table_from([text.encode("latin-1") for text in texts]) for texts in (patterns, subjects)]
    different = lua.execute(COMPARE, own, lua.globals()[b"string"], *encoded)
    assert [line.decode("latin-1") for line in different.values()] == []


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("[a", "missing ']'"),
        ("a%", "ends with '%'"),
        ("(a", "unfinished capture"),
        ("a)", "invalid pattern capture"),
        ("%1", "invalid capture index %1"),
        ("%f", "missing '[' after '%f'"),
        ("%b", "missing arguments to '%b'"),
        ("(" * 33 + ")" * 33, "too many captures"),
    ],
)
def test_a_malformed_pattern_raises_where_the_handler_called(pattern: str, text: str):
    for call in (f"('x'):find('{pattern}')", f"('x'):gsub('{pattern}', '')", f"('x'):gmatch('{pattern}')"):
        error = run(call).finished.error
        assert error is not None
        assert text in error.text
        assert error.text.startswith("app.lua:1:")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("string.find({}, 'x')", "bad argument #1 to 'find' (string expected, got table)"),
        ("string.match('x')", "bad argument #2 to 'match' (string expected, got nil)"),
        ("string.gsub('x', 'x')", "bad argument #3 to 'gsub' (string/function/table expected, got nil)"),
        ("string.find('x', '.', 'y')", "bad argument #3 to 'find' (number expected, got string)"),
        ("('x'):rep('y')", "bad argument #2 to 'rep' (number expected, got string)"),
    ],
)
def test_a_wrong_argument_raises_where_the_handler_called(call: str, text: str):
    error = run(call).finished.error
    assert error is not None
    assert error.text == f"app.lua:1: {text}"


def test_numbers_are_texts_to_the_string_functions_as_in_lua():
    assert run("print((string.find(1234, 23)), (string.gsub(11, 1, 2)), string.rep(7, 3, 0))").printed == [
        "2 22 70707"
    ]


@pytest.mark.parametrize(
    ("pattern", "subject"),
    [
        ("%d+%-%d+%-%d+T", "2024-01-02T " * 3),
        ("^%s*(.-)%s*$", "  some text to trim  "),
        ("(%w+)=(%w*)", "key=value, other=thing"),
        ("[^\n]+", "x" * 10_000),
        ("^(%d+)$", "1234567890"),
        ("%s+$", "some text of an ordinary length  "),
        ("<(%a+)>(.-)</%1>", "<b>bold</b>"),
    ],
)
def test_an_ordinary_pattern_on_an_ordinary_subject_is_left_to_lua(pattern: str, subject: str):
    lua, _ = _bare(slow=False)
    shared = lua.execute(b"return {limits = {pattern_steps = 1e8}}")
    lua.globals()[b"load"](source_of("patterns"))(shared)
    program = shared[b"patterns"][b"prepare"](pattern.encode())
    assert len(subject) <= program[b"cheap"]


@pytest.mark.parametrize(
    "pattern",
    [
        "a*a*a*a*a*a*a*a*b",
        ".-.-.-.-.-.-b",
        "a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?aaaaaaaaaaaaaaab",
        "(a*)(a*)(a*)(a*)%1%2%3%4b",
        "[ab]*[bc]*[ac]*[abc]*d",
        "%b()%b()%b()x",
        "a+%f[b]a+%f[b]a*%f[b]a*b",
        "%w*%W*%w*.*.*.*%d",
    ],
)
def test_a_hostile_pattern_is_not_left_to_lua_on_a_long_subject(pattern: str):
    lua, _ = _bare(slow=False)
    shared = lua.execute(b"return {limits = {pattern_steps = 1e8}}")
    lua.globals()[b"load"](source_of("patterns"))(shared)
    assert shared[b"patterns"][b"prepare"](pattern.encode())[b"most"] < 20_000
