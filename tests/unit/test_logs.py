"""Log lines are for machines or for people, carry their fields, and never a credential."""

from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunaq_runtime import logs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger("lunaq.test")


@pytest.fixture(name="lines")
def _lines() -> Iterator[Callable[..., Callable[[], list[str]]]]:
    root = logging.getLogger()
    before = root.handlers[:], root.level

    def start(log_format: str, level: str = "info") -> Callable[[], list[str]]:
        stream = io.StringIO()
        logs.setup(log_format, level, stream)
        return lambda: stream.getvalue().splitlines()

    yield start
    root.handlers[:], root.level = before


def test_json_lines_carry_message_level_and_the_standard_fields(lines: Any) -> None:
    read = lines("json")
    logger.warning("failed %d times", 2, extra={"message_id": "m", "attempt": 2, "queue": "app:q"})
    entry = json.loads(read()[0])
    assert entry.pop("time").endswith("+00:00")
    assert entry == {
        "level": "warning",
        "logger": "lunaq.test",
        "message": "failed 2 times",
        "message_id": "m",
        "attempt": 2,
        "queue": "app:q",
    }


def test_fields_of_handlers_are_added_and_replace_nothing(lines: Any) -> None:
    read = lines("json")
    logger.info("hello", extra={"fields": {"user": {"id": 7}, "level": "forged", "raw": b"\xff"}})
    entry = json.loads(read()[0])
    assert (entry["user"], entry["level"], entry["level_"], entry["raw"]) == (
        {"id": 7},
        "info",
        "forged",
        "\ufffd",
    )


def test_an_exception_is_part_of_its_json_line(lines: Any) -> None:
    read = lines("json")
    try:
        float("amqp://me:secret@host")
    except ValueError:
        logger.exception("broken")
    (line,) = read()
    assert "could not convert string to float: 'amqp://***@host'" in json.loads(line)["exception"]
    assert "secret" not in line


def test_console_lines_are_for_people(lines: Any) -> None:
    read = lines("console")
    logger.info("hello", extra={"message_id": "m"})
    assert read()[0][9:] == "info    hello message_id=m"


@pytest.mark.parametrize("log_format", logs.FORMATS)
def test_credentials_in_uris_are_blotted_out_wherever_they_stand(lines: Any, log_format: str) -> None:
    read = lines(log_format)
    logger.info("connecting to %s", "amqps://me:s/ec@ret@host:5671/v", extra={"error": "http://u:secret@h"})
    (line,) = read()
    assert "amqps://***@host:5671/v" in line
    assert "http://***@h" in line
    assert "ret@host" not in line
    assert "secret" not in line


@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=8))
def test_no_password_survives(password: str) -> None:
    assert f":{password}@" not in logs.redact(f"see amqp://user:{password}@host/v and more")


def test_text_without_credentials_stays_as_it_is() -> None:
    text = "mail me@host about https://host/path and a@b"
    assert logs.redact(text) == text


def test_a_line_survives_text_that_is_not_unicode(lines: Any) -> None:
    read = lines("json")
    logger.info("half \ud800", extra={"fields": {1: {2: "x"}}})
    assert json.loads(read()[0])["message"] == "half ?"


def test_the_level_holds_for_us_and_libraries_are_quieter(lines: Any) -> None:
    read = lines("console", "debug")
    logger.debug("ours")
    logging.getLogger("aiohttp.access").info("theirs")
    assert [line.split()[-1] for line in read()] == ["ours"]


@pytest.mark.parametrize(("level", "told"), [("info", 0), ("debug", 1)])
def test_what_the_amqp_library_repeats_of_our_errors_is_told_at_debug_only(
    lines: Any, level: str, told: int
) -> None:
    read = lines("console", level)
    logging.getLogger("aiormq.connection").error("connection refused")
    assert len(read()) == told
