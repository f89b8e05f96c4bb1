"""Each sabotage still finds what it breaks: `make prove-sabotage` is run now and then, the code changes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SABOTAGES = tomllib.loads((ROOT / "tests/sabotage/sabotages.toml").read_text())["sabotage"]


@pytest.fixture(scope="module")
def tests() -> str:
    return "".join(path.read_text() for path in sorted((ROOT / "tests").rglob("*.py")))


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=[one["name"] for one in SABOTAGES])
def test_a_sabotage_finds_the_one_place_it_breaks_and_its_tests(sabotage: dict[str, str], tests: str):
    found = (ROOT / sabotage["file"]).read_text().count(sabotage["replace"])
    assert found == 1, f"{sabotage['file']} has {found} of what is to be replaced"
    for name in re.findall(r"(?:-k |or |::)'?(test_\w+)", sabotage["test"]):
        assert f"def {name}(" in tests, f"there is no test {name}"
