"""Durations follow Go's syntax to the letter, so that one text means one thing in every file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunaq_runtime import durations

AMOUNTS = st.integers(min_value=-(2**63 - 1), max_value=2**63 - 1)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("-0", 0),
        ("0s", 0),
        ("250ms", 250_000_000),
        ("1.5s", 1_500_000_000),
        (".5s", 500_000_000),
        ("1.s", 1_000_000_000),
        ("1h30m", 5_400_000_000_000),
        ("1h30m0s", 5_400_000_000_000),
        ("-2m", -120_000_000_000),
        ("+2m", 120_000_000_000),
        ("3us", 3_000),
        ("3\u00b5s", 3_000),
        ("7ns", 7),
        ("0.5ns", 0),
        ("9223372036854775807ns", 2**63 - 1),
    ],
)
def test_durations_of_go_syntax_are_read_exactly(text: str, nanoseconds: int) -> None:
    assert durations.parse_duration(text) == nanoseconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "-",
        "+",
        "s",
        ".s",
        "1d",
        "1h 30m",
        " 1s",
        "1s ",
        "1,5s",
        "1S",
        "--1s",
        "1s-1s",
        "00",
        "1.5.5s",
    ],
)
def test_anything_else_is_refused_with_how_to_write_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a duration: write decimals with a unit, such as 250ms"):
        durations.parse_duration(text)


def test_a_duration_beyond_64_bits_of_nanoseconds_is_refused() -> None:
    with pytest.raises(ValueError, match="too long a duration"):
        durations.parse_duration("9223372036854775808ns")


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1_500, "1.5us"),
        (250_000_000, "250ms"),
        (1_000_000_001, "1.000000001s"),
        (60_000_000_000, "1m0s"),
        (5_400_000_000_000, "1h30m0s"),
        (3_600_000_000_000, "1h0m0s"),
        (-90_500_000_000, "-1m30.5s"),
    ],
)
def test_durations_are_written_as_go_writes_them(nanoseconds: int, text: str) -> None:
    assert durations.format_duration(nanoseconds) == text


@given(AMOUNTS)
def test_a_written_duration_reads_back_as_itself(nanoseconds: int) -> None:
    assert durations.parse_duration(durations.format_duration(nanoseconds)) == nanoseconds


@given(st.text(alphabet="0123456789.hmnsu-+ ", max_size=12))
def test_every_text_is_either_read_or_refused_with_a_value_error(text: str) -> None:
    try:
        nanoseconds = durations.parse_duration(text)
    except ValueError:
        return
    assert abs(nanoseconds) < 2**63


def test_seconds_and_milliseconds_are_derived_from_nanoseconds() -> None:
    assert durations.to_seconds(1_500_000_000) == 1.5
    assert durations.to_milliseconds(1_500_000_000) == 1500


def test_milliseconds_are_never_rounded_silently() -> None:
    with pytest.raises(ValueError, match=r"1\.5us is finer than a millisecond"):
        durations.to_milliseconds(1_500)
