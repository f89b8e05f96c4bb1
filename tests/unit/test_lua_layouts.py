"""Times as text and back by reference-date layouts, and rounding (lua-api.md 3.3)."""

from __future__ import annotations

import pytest
from lua_driver import printed_by, run

AFTERNOON = "time.date(2006, 1, 2, 15, 4, 5, 123456000, time.fixed_zone('MST', -25200))"
MORNING = "time.date(2024, 12, 9, 0, 7, 8, 0, time.utc)"


@pytest.mark.parametrize(
    ("layout", "afternoon", "morning"),
    [
        ("2006 06 01 1 Jan January", "2006 06 01 1 Jan January", "2024 24 12 12 Dec December"),
        ("02 2 _2 002", "02 2  2 002", "09 9  9 344"),
        ("15 03 3 04 4 05 5 PM pm", "15 03 3 04 4 05 5 PM pm", "00 12 12 07 7 08 8 AM am"),
        ("Mon Monday", "Mon Monday", "Mon Monday"),
        (
            "MST -0700 -07:00 -07 Z0700 Z07:00",
            "MST -0700 -07:00 -07 -0700 -07:00",
            "UTC +0000 +00:00 +00 Z Z",
        ),
        (".000 .999 ,00 .000000000", ".123 .123 ,12 .123456000", ".000  ,00 .000000000"),
        ("05.999999", "05.123456", "08"),
        ("at 3 o'clock, Janet", "at 3 o'clock, Janet", "at 12 o'clock, Janet"),
        ("", "", ""),
    ],
)
def test_every_token_is_written_and_everything_else_is_literal(layout: str, afternoon: str, morning: str):
    text = layout.replace("'", "\\'")
    assert printed_by(f"print('[' .. ({AFTERNOON}):format('{text}') .. ']')") == [f"[{afternoon}]"]
    assert printed_by(f"print('[' .. ({MORNING}):format('{text}') .. ']')") == [f"[{morning}]"]


@pytest.mark.parametrize(
    ("constant", "text"),
    [
        ("RFC3339", "2006-01-02T15:04:05-07:00"),
        ("RFC3339NANO", "2006-01-02T15:04:05.123456-07:00"),
        ("RFC822", "02 Jan 06 15:04 MST"),
        ("RFC822Z", "02 Jan 06 15:04 -0700"),
        ("RFC850", "Monday, 02-Jan-06 15:04:05 MST"),
        ("RFC1123", "Mon, 02 Jan 2006 15:04:05 MST"),
        ("RFC1123Z", "Mon, 02 Jan 2006 15:04:05 -0700"),
        ("KITCHEN", "3:04PM"),
        ("STAMP", "Jan  2 15:04:05"),
        ("STAMP_MILLI", "Jan  2 15:04:05.123"),
        ("STAMP_MICRO", "Jan  2 15:04:05.123456"),
        ("STAMP_NANO", "Jan  2 15:04:05.123456000"),
        ("DATE_TIME", "2006-01-02 15:04:05"),
        ("DATE_ONLY", "2006-01-02"),
        ("TIME_ONLY", "15:04:05"),
    ],
)
def test_every_layout_constant_writes_and_reads_its_own_text(constant: str, text: str):
    assert printed_by(f"print(({AFTERNOON}):format(time.{constant}))") == [text]
    again = (
        f"local t, err = time.parse(time.{constant}, '{text}') print(t and t:format(time.{constant}), err)"
    )
    assert printed_by(again) == [f"{text} nil"]


@pytest.mark.parametrize(
    ("layout", "text", "seconds", "nanoseconds"),
    [
        ("2006-01-02", "1970-01-02", 86400, 0),
        ("2006-01-02T15:04:05Z07:00", "1970-01-01T01:00:00+01:00", 0, 0),
        ("2006-01-02T15:04:05Z07:00", "1970-01-01T00:00:01.5Z", 1, 500_000_000),
        ("2006-01-02 15:04:05.000", "1970-01-01 00:00:02.250", 2, 250_000_000),
        ("2006-01-02 15:04:05,999", "1970-01-01 00:00:02,123456789", 2, 123_456_789),
        ("06 002 3PM", "70 002 12AM", 86400, 0),
        ("06 Jan _2 3:04pm", "70 JANUARY  1 12:05pm".replace("JANUARY", "jan"), 12 * 3600 + 300, 0),
        ("Monday, 2 January 2006", "Thursday, 1 january 1970", 0, 0),
        ("2006-01-02 MST", "1970-01-01 UTC", 0, 0),
        ("2006-01-02 -07", "1970-01-01 -01", 3600, 0),
        ("2006", "2000", 946684800, 0),
    ],
)
def test_texts_are_read(layout: str, text: str, seconds: int, nanoseconds: int):
    source = f"local t, err = time.parse('{layout}', '{text}') print(err) print(t:unix(), t:nanosecond())"
    assert printed_by(source) == ["nil", f"{seconds} {nanoseconds}"]


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        ("2006-01-02", "2023-02-29"),
        ("2006-01-02", "2024-13-01"),
        ("2006-01-02", "24-01-01"),
        ("2006-01-02", "2024-01-01 "),
        ("2006-01-02", "2024/01/01"),
        ("2006 002", "2023 366"),
        ("15:04", "24:00"),
        ("15:04", "12:60"),
        ("3PM", "13PM"),
        ("3PM", "1XM"),
        ("Mon", "Xyz"),
        ("-0700", "0700"),
        ("Z07:00", "+7:00"),
        (".000", ".12"),
        ("MST", "utc"),
        ("2006", ""),
    ],
)
def test_what_does_not_fit_its_layout_is_invalid(layout: str, text: str):
    (line,) = printed_by(f"local t, err = time.parse('{layout}', '{text}') print(t, err:kind(), err)")
    assert line.startswith(f"nil Invalid cannot parse '{text}' as '{layout}': ")


def test_a_time_without_a_zone_is_of_the_location_given():
    source = """
        local berlin = time.load_location('Europe/Berlin')
        print(time.parse('2006-01-02 15:04', '2024-07-01 12:00', berlin):format_rfc3339())
        print(time.parse('2006-01-02 15:04 -0700', '2024-07-01 12:00 +0200', berlin):location():string())
        print(time.parse('2006-01-02 15:04 -0700', '2024-07-01 12:00 +0300', berlin):format_rfc3339())
        print(time.parse('2006-01-02 15:04 MST', '2024-07-01 12:00 CEST', berlin):format_rfc3339())
        print(time.date(2024, 1, 1, 0, 0, 0, 0, berlin):format('MST'), berlin:string())
    """
    assert printed_by(source) == [
        "2024-07-01T12:00:00+02:00",
        "Europe/Berlin",
        "2024-07-01T12:00:00+03:00",
        "2024-07-01T12:00:00+02:00",
        "CET Europe/Berlin",
    ]


@pytest.mark.parametrize(
    ("duration", "down", "near"),
    [
        ("1h", "12:00:00.000000000", "13:00:00.000000000"),
        ("30m", "12:30:00.000000000", "12:30:00.000000000"),
        ("1s", "12:30:45.000000000", "12:30:46.000000000"),
        ("1ms", "12:30:45.918000000", "12:30:45.918000000"),
        ("2s", "12:30:44.000000000", "12:30:46.000000000"),
        ("7ns", "12:30:45.918273639", "12:30:45.918273646"),
        ("1500ms", "12:30:45.000000000", "12:30:46.500000000"),
        ("0", "12:30:45.918273645", "12:30:45.918273645"),
        ("-1h", "12:30:45.918273645", "12:30:45.918273645"),
    ],
)
def test_times_are_rounded_to_multiples_since_the_zero_time(duration: str, down: str, near: str):
    source = f"""
        local t = time.date(2012, 12, 7, 12, 30, 45, 918273645, time.utc)
        local d = time.parse_duration('{duration}')
        print(t:truncate(d):format('15:04:05.000000000'), t:round(d):format('15:04:05.000000000'))
    """
    assert printed_by(source) == [f"{down} {near}"]


@pytest.mark.parametrize(
    "call",
    [
        "time.now():round(5)",
        "time.now():truncate('1h')",
        "time.now():format(5)",
        "time.parse(5, 'x')",
        "time.parse('x')",
    ],
)
def test_wrong_types_raise_at_the_callers_line(call: str):
    error = run(f"\n{call}").finished.error
    assert error is not None
    assert error.text.startswith("app.lua:2: bad argument")
