"""The coverage table of the Lua contract is true: its tests exist, and docs/proofs.md has its counts."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SECTIONS: list[dict[str, Any]] = tomllib.loads((ROOT / "tests/contract/rows.toml").read_text())["section"]
ROWS = [(section["id"], row, shown) for section in SECTIONS for row, shown in section["rows"].items()]
HEADING = "## lua-api.md, row by row"


@pytest.fixture(scope="module")
def tests() -> set[str]:
    """Every test there is, as rows.toml names it."""
    files = [*ROOT.glob("tests/*/test_*.py"), *ROOT.glob("tests/harness/*_scenarios.py")]
    return {
        f"{path.stem.removeprefix('test_')}::{name}"
        for path in files
        for name in re.findall(r"def test_(\w+)\(", path.read_text())
    } | {f"docs::{path.stem}" for path in ROOT.glob("docs/lua/*.md") if "```lua\n" in path.read_text()}


def test_every_test_that_a_row_names_exists(tests: set[str]):
    missing = [
        f"{section} {row}: {test}"
        for section, row, shown in ROWS
        if isinstance(shown, list)
        for test in shown
        if test not in tests
    ]
    assert missing == []


def test_every_row_has_a_test_or_says_why_not():
    empty = [f"{section} {row}" for section, row, shown in ROWS if not shown]
    assert empty == []


def table() -> str:
    """Write the table of docs/proofs.md."""
    lines = ["| Section | Rows with a test | Left |", "| --- | --- | --- |"]
    covered = 0
    for section in SECTIONS:
        rows = section["rows"]
        left = {row: why for row, why in rows.items() if isinstance(why, str)}
        covered += len(rows) - len(left)
        told = "; ".join(f"{row}: {why}" for row, why in left.items())
        lines.append(
            f"| {section['id']} {section['title']} | {len(rows) - len(left)} of {len(rows)} | {told} |"
        )
    lines.append(f"| all | **{covered} of {len(ROWS)}** | {len(ROWS) - covered} |")
    return "\n".join(lines)


def test_the_proofs_have_the_table_that_follows_from_the_rows():
    proofs = (ROOT / "docs/proofs.md").read_text()
    assert HEADING in proofs
    section = proofs.split(HEADING, 1)[1].split("\n## ", 1)[0]
    assert table() in section, f"the table of docs/proofs.md is to be:\n{table()}"
