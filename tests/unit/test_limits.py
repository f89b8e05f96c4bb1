"""The page of limits says what the constants say."""

from __future__ import annotations

import re
from pathlib import Path

from lunaq_runtime import limits
from lunaq_runtime.entries.model import Handler

PAGE = (Path(__file__).parents[2] / "docs" / "lua" / "limits.md").read_text()
LINES = [line for line in PAGE.splitlines() if line.startswith("| ")]
ROWS = [[cell.strip() for cell in line.split("|")[1:-1]] for line in LINES]


def test_every_constant_is_on_the_page_with_its_value():
    constants = {name: value for name, value in vars(limits).items() if name.isupper()}
    told = {(row[3].strip("`"), row[1]) for row in ROWS}
    for name, value in constants.items():
        assert (name, str(value)) in told


def test_the_page_names_no_constant_that_is_not_there():
    named = {name for row in ROWS for name in re.findall(r"^`([A-Z_]+)`$", row[3])}
    assert named == {name for name in vars(limits) if name.isupper()}


def test_the_fields_have_the_defaults_of_the_page():
    handler = Handler("a.lua", "")
    defaults = {row[3].strip("`"): row[1] for row in reversed(ROWS)}
    assert defaults["timeout"] == f"{handler.timeout:g} s"
    assert defaults["memoryLimit"] == f"{handler.memory_limit // 2**20} MiB"
