"""logger, print, json, time, env, uuid, security and process (lua-api.md section 3)."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from lua_driver import IDENTITY, FakeHost, load, run

from lunaq_runtime.entries.model import Handler
from lunaq_runtime.lua.errors import INTERNAL, INVALID
from lunaq_runtime.lua.requests import Finished, Sleep
from lunaq_runtime.lua.state import LuaState, MessageContext


def printed(source: str, body: Any = None, **given: Any) -> list[str]:
    finished = run(source, body, **given)
    assert finished.finished.error is None, finished.finished.error
    return finished.printed


def failing(source: str) -> str:
    error = run(source).finished.error
    assert error is not None
    return error.text


# logger ---------------------------------------------------------------------------------------------------


def logged(source: str) -> list[tuple[str, str, dict[str, Any], str]]:
    host = FakeHost()
    assert run(source, host=host, context=MessageContext("id-1", attempt=2)).finished == Finished()
    return host.records


@pytest.mark.parametrize("level", ["debug", "info", "warn", "error"])
def test_each_level_logs_with_the_delivery_and_the_line(level: str):
    assert logged(f"\nlogger:{level}('text')") == [
        (
            level,
            "text",
            {
                "consumer": "app:consumer",
                "queue": "app:emails",
                "message_id": "id-1",
                "attempt": 2,
                "location": "app.lua:2",
            },
            "",
        )
    ]


def test_fields_are_typed_and_only_those_with_text_keys_count():
    _, _, fields, _ = logged(
        "logger:info('x', {s = 'a', n = 1, f = 0.5, b = false, t = {1, {k = 'v'}}, [1] = 'no',"
        " error = errors.new('broken'), fn = print})"
    )[0]
    given = {key: fields[key] for key in ("s", "n", "f", "b", "t", "error", "fn")}
    assert given == {
        "s": "a",
        "n": 1,
        "f": 0.5,
        "b": False,
        "t": [1, {"k": "v"}],
        "error": "broken",
        "fn": None,
    }
    assert 1 not in fields
    assert "1" not in fields


def test_logging_leaves_the_callers_table_alone():
    assert printed("local f = {error = errors.new('e')} logger:warn('x', f) print(f.error)") == ["e"]


def test_a_field_that_cannot_be_copied_says_so_and_the_others_are_kept():
    _, _, fields, _ = logged("local t = {{{}}} t[1][1][1] = t logger:info('x', {bad = t, good = 1})")[0]
    assert "recursive" in fields["bad"]
    assert fields["good"] == 1


def test_with_and_named_make_children():
    records = logged(
        "local a = logger:with({x = 1}):named('one') local b = a:named('two'):with({y = 2})"
        " a:info('a', {x = 'own'}) b:info('b') logger:info('c')"
    )
    assert [(fields.get("x"), fields.get("y"), name) for _, _, fields, name in records] == [
        ("own", None, "one"),
        (1, 2, "one.two"),
        (None, None, ""),
    ]


@pytest.mark.parametrize(
    "call",
    [
        "logger:info(5)",
        "logger:info()",
        "logger:info('x', 'y')",
        "logger.info('x')",
        "logger:named('')",
        "logger:with(5)",
    ],
)
def test_wrong_arguments_of_the_logger_raise_at_the_callers_line(call: str):
    assert failing(f"\n{call}").startswith("app.lua:2: ")


def test_print_is_one_info_record_with_its_arguments_joined_by_a_space():
    assert [(level, message) for level, message, _, _ in logged("print('a', 1, nil, true) print()")] == [
        ("info", "a 1 nil true"),
        ("info", ""),
    ]


# json -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("nil", "null"),
        ("true", "true"),
        ("9007199254740993", "9007199254740993"),
        ("3.0", "3"),
        ("0/0", "null"),
        ("1/0", "null"),
        ("0.1", "0.1"),
        ("'a\\n\"ü'", '"a\\n\\"ü"'),
        ("{1, {2}, {}}", "[1,[2],[]]"),
        ("{a = {b = 1}}", '{"a":{"b":1}}'),
        ("{}", "[]"),
        ("{1, print, coroutine.create(print)}", "[1,null,null]"),
        ("{errors.wrap('m', 'c')}", '["c: m"]'),
        ('json.decode(\'{"a":{},"b":[]}\').a', "{}"),
        ('json.decode(\'{"a":{},"b":[]}\').b', "[]"),
    ],
)
def test_json_encodes(value: str, text: str):
    source = f"local text, err = json.encode({value}) print(text) print(err)"
    assert printed(source) == [text, "nil"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("{1, nil, 3, [9] = 1}", "sparse"),
        ("{1, a = 2}", "mixed keys"),
        ("(function() local t = {} t.t = t return t end)()", "recursive"),
        ("(function() local t = {} for i = 1, 130 do t = {t} end return t end)()", "depth"),
        ("'\\xff'", "UTF-8"),
        ("{[{}] = 1}", "key of type table"),
    ],
)
def test_json_refuses_with_an_internal_error(value: str, reason: str):
    text, err, kind = printed(
        f"local text, err = json.encode({value}) print(text) print(err) print(err:kind())"
    )
    assert (text, kind) == ("nil", INTERNAL)
    assert reason in err


def test_the_same_table_twice_is_no_recursion():
    assert printed("local t = {1} print((json.encode({t, t})))") == ["[[1],[1]]"]


def test_json_decodes_into_real_tables():
    assert printed(
        'local v = json.decode(\'{"a":[1,2.5,null,"x"],"n":null,"i":9007199254740993}\')'
        " print(v.a[1], v.a[2], v.a[3], v.a[4], v.n, v.i, math.type(v.a[1]), math.type(v.a[2]))"
    ) == ["1 2.5 nil x nil 9007199254740993 integer float"]


@pytest.mark.parametrize(
    ("text", "message", "kind"),
    [
        ("5", "string expected", INVALID),
        ("''", "empty string is not valid JSON", INVALID),
        ("'{'", "the text is not JSON", INTERNAL),
        ("'{} x'", "the text is not JSON", INTERNAL),
        ("('['):rep(200) .. (']'):rep(200)", "maximum depth of 128", INTERNAL),
    ],
)
def test_json_decode_errors(text: str, message: str, kind: str):
    value, err, got = printed(f"local v, err = json.decode({text}) print(v) print(err) print(err:kind())")
    assert (value, got) == ("nil", kind)
    assert message in err


# time -----------------------------------------------------------------------------------------------------


def test_sleep_asks_for_seconds_and_returns_nothing():
    finished = run(
        "print(select('#', time.sleep('1m30s'))) time.sleep(5 * time.MILLISECOND)"
        " time.sleep(time.parse_duration('2h')) time.sleep(1.5e9) pcall(time.sleep, '1ns')",
        replies=[()] * 5,
    )
    assert finished.requests == [Sleep(90.0), Sleep(0.005), Sleep(7200.0), Sleep(1.5), Sleep(1e-9)]
    assert finished.printed == ["0"]


def test_sleeping_no_time_returns_at_once():
    assert run("time.sleep(0) time.sleep(-5) time.sleep('0')").requests == []


@pytest.mark.parametrize("value", ["'soon'", "'5'", "{}", "nil", "true", "0/0", "time.now()"])
def test_what_is_no_duration_is_invalid(value: str):
    assert printed(f"local v, err = time.sleep({value}) print(v, err:kind())") == [f"nil {INVALID}"]
    assert printed(f"local v, err = time.parse_duration({value}) print(v, err:kind())") == [f"nil {INVALID}"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("'1h30m'", "1h30m0s"),
        ("'250ms'", "250ms"),
        ("'-1.5s'", "-1.5s"),
        ("90 * time.SECOND", "1m30s"),
        ("0", "0s"),
    ],
)
def test_durations_read_and_print_like_go(text: str, shown: str):
    assert printed(f"print((time.parse_duration({text})))") == [shown]


def test_duration_methods():
    assert printed(
        "local d = time.parse_duration('1h30m0.5s') print(d:nanoseconds(), d:microseconds(),"
        " d:milliseconds(), d:seconds(), d:minutes(), d:hours() > 1.5, math.type(d:milliseconds()))"
    ) == ["5400500000000 5400500000 5400500 5400.5 90.008333333333 true integer"]


def test_constants_are_integers():
    assert printed("print(time.SECOND, math.type(time.HOUR), time.JANUARY, time.SATURDAY, time.RFC3339)") == [
        "1000000000 integer 1 6 2006-01-02T15:04:05Z07:00"
    ]


def test_now_is_the_wall_clock_to_the_nanosecond():
    host = FakeHost()
    source = "function handle() local n = time.now() print(n:unix(), n:unix_nano(), n:utc()) end"
    state = LuaState(
        Handler("app.lua", source), host, identity=IDENTITY, wall_clock=lambda: 1_700_000_000_123_456_789
    )
    state.start(MessageContext("1"), None).step()
    assert host.printed() == ["1700000000 1700000000123456789 2023-11-14T22:13:20Z"]


def test_arithmetic_and_comparison_of_times():
    assert printed(
        """
        local a = time.unix(100, 999999999)
        local b = a:add(2)
        print(b:unix(), b:nanosecond(), b:sub(a):nanoseconds(), a:sub(b):nanoseconds())
        print(a:before(b), a:after(b), b:after(a), a:equal(time.unix(100, 999999999)), a == b, a == a:utc())
        print(time.unix(0, -1):unix(), time.unix(0, -1):nanosecond())
        """
    ) == ["101 1 2 -2", "true false true true false true", "-1 999999999"]


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("time.date(2024, 2, 29, 12, 30, 45, 0, time.utc)", "2024-02-29T12:30:45Z"),
        ("time.date(2024, 2, 31, 25, 0, 0, 0, time.utc)", "2024-03-03T01:00:00Z"),
        ("time.date(2023, 14, 1, 0, 0, 0, 0, time.utc)", "2024-02-01T00:00:00Z"),
        ("time.date(1969, 12, 31, 23, 59, 59, 0, time.utc)", "1969-12-31T23:59:59Z"),
        ("time.date(2024, 1, 31, 0, 0, 0, 0, time.utc):add_date(0, 1, 0)", "2024-03-02T00:00:00Z"),
        ("time.date(2024, 7, 1, 12, 0, 0, 0, time.fixed_zone('X', -16200))", "2024-07-01T12:00:00-04:30"),
        (
            "time.date(2024, 7, 1, 12, 0, 0, 0, (time.load_location('Europe/Berlin')))",
            "2024-07-01T12:00:00+02:00",
        ),
        (
            "time.date(2024, 1, 1, 12, 0, 0, 0, (time.load_location('Europe/Berlin'))):utc()",
            "2024-01-01T11:00:00Z",
        ),
    ],
)
def test_dates(expression: str, text: str):
    assert printed(f"print(({expression}):format_rfc3339())") == [text]


def test_civil_fields():
    assert printed(
        """
        local t = time.date(2024, 2, 29, 12, 30, 45, 7, time.utc)
        print(t:year(), t:month(), t:day(), t:hour(), t:minute(), t:second(), t:nanosecond())
        print(t:weekday(), t:year_day(), t:is_zero(), time.date(1, 1, 1, 0, 0, 0, 0, time.utc):is_zero())
        print(t:date()) print(t:clock()) print(t:location():string(), time.load_location('Nowhere/Land'))
        print(t:format(time.DATE_ONLY), t:format(time.TIME_ONLY), t:format(time.DATE_TIME))
        """
    ) == [
        "2024 2 29 12 30 45 7",
        "4 60 false true",
        "2024 2 29",
        "12 30 45",
        "UTC nil unknown location: Nowhere/Land",
        "2024-02-29 12:30:45 2024-02-29 12:30:45",
    ]


# env, uuid, security, process -----------------------------------------------------------------------------


def test_env_sees_the_handlers_variables_only():
    assert printed(
        """
        print(env.get('A'))
        local v, err = env.get('PATH') print(v, err:kind())
        v, err = env.get('') print(v, err:kind())
        print(env.set('B', 'two'), env.get('B'))
        local all = env.get_all() all.A = 'changed' print(env.get_all().A, all.B)
        """,
        env={"A": "one ü"},
    ) == ["one ü nil", "nil NotFound", "nil Invalid", "true two nil", "one ü two"]


def test_env_of_one_state_is_not_seen_by_another():
    variables = {"A": "one"}
    load("env.set('A', 'two') function handle() end", env=variables)
    assert printed("print(env.get('A'))", env=variables) == ["one nil"]


def test_uuids_are_of_their_version():
    lines = printed("for _, v in ipairs({'v1', 'v4', 'v7'}) do print((uuid[v]())) end")
    assert [uuid.UUID(line).version for line in lines] == [1, 4, 7]
    assert {uuid.UUID(line).variant for line in lines} == {uuid.RFC_4122}


def test_uuid_functions():
    assert printed(
        """
        local ns = '6ba7b810-9dad-11d1-80b4-00c04fd430c8'
        print(uuid.v3(ns, 'a'), uuid.v5(ns, 'a'))
        print(uuid.validate(ns), uuid.validate('x'), uuid.validate(5), uuid.validate())
        print(uuid.version(ns), uuid.variant(ns), (uuid.format(ns, 'simple')), (uuid.format(ns, 'urn')))
        print(uuid.parse(ns).node, uuid.parse(ns).version)
        for _, call in ipairs({function() return uuid.v5('x', 'a') end, function() return uuid.version(5) end,
            function() return uuid.format(ns, 'odd') end, function() return uuid.parse() end}) do
          local v, err = call() print(v, err:kind())
        end
        """
    ) == [
        f"{uuid.uuid3(uuid.NAMESPACE_DNS, 'a')} {uuid.uuid5(uuid.NAMESPACE_DNS, 'a')} nil",
        "true false false false",
        "1 RFC4122 6ba7b8109dad11d180b400c04fd430c8 urn:uuid:6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "00:c0:4f:d4:30:c8 1",
        *["nil Invalid"] * 4,
    ]


def test_security_answers_as_the_checks_of_publish_do():
    host = FakeHost(denied=(("queue.publish.queue", "app:secret"),))
    assert printed(
        "local to = 'queue.publish.queue' print(security.can(to, 'app:secret'), security.can(to, 'app:x'))"
        " print(security.can('queue.publish'), security.actor():id(), security.scope())",
        host=host,
    ) == ["false true", "true app:consumer nil"]
    assert host.asked[-1] == ("queue.publish", "")


def test_process_functions_are_unavailable():
    assert printed("local v, err = process.spawn('x') print(v, err:kind(), err)") == [
        "nil Unavailable process.spawn is not available in Lunaq"
    ]
