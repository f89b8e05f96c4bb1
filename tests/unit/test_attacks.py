"""The corpus of attacks (tests/attacks): each is contained as it says, and its neighbour does not notice."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from harness.attack_stage import ENDS, Attack, Report, corpus, run

ATTACKS = corpus()
FAMILIES = Counter(attack.family for attack in ATTACKS)
AT_LEAST = 8


def test_the_corpus_is_large_and_every_family_has_its_share():
    assert len(ATTACKS) >= 150
    assert min(FAMILIES.values()) >= AT_LEAST
    assert all(attack.ends in ENDS for attack in ATTACKS)
    names = Counter((attack.family, attack.name) for attack in ATTACKS)
    assert max(names.values()) == 1
    sources = Counter(f"{attack.source}{attack.message}{attack.handler}" for attack in ATTACKS)
    assert [source for source, count in sources.items() if count > 1] in ([], ["return true"])


@pytest.mark.parametrize(
    "attack",
    [pytest.param(attack, id=f"{attack.family}: {attack.name}") for attack in ATTACKS],
)
def test_an_attack_is_contained_and_its_neighbour_goes_on(
    attack: Attack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("PLANTED", "a secret of the process")
    report = _in_a_process_of_its_own(attack) if attack.ends == "process" else asyncio.run(run(attack))
    _check_end(attack, report)
    if attack.ends not in ("process", "refused_at_load"):
        innocents = [
            entry["innocent"] for entry in report.logged if isinstance(entry, dict) and "innocent" in entry
        ]
        assert len(innocents) == 1
        before = 1 if attack.message == "" or attack.ends not in ("decode_error", "too_large") else 0
        before += bool(attack.again)
        if attack.state:
            assert innocents == [before + 1 if attack.state == "kept" else 1]
    written = [record for record in caplog.records if record.name.startswith("lunaq.handler")]
    assert len(written) <= attack.records
    assert sum(len(record.getMessage()) for record in written) < 2 * 1024 * 1024
    assert report.growth <= attack.growth


def _check_end(attack: Attack, report: Report) -> None:
    if attack.ends == "refused_at_load":
        assert attack.text in report.load_error
        assert report.load_error
        return
    if attack.ends == "handled":
        assert [headers["x_error"] for headers in report.dead] == []
        return
    assert len(report.dead) == 1
    (headers,) = report.dead
    reason, text = headers["x_dead_letter_reason"], headers["x_error"]
    assert len(text) <= 1000
    assert attack.text in text
    if attack.ends in ("decode_error", "too_large"):
        assert reason == attack.ends
    elif attack.ends == "process":
        assert reason == "timeout"
        assert "cannot be stopped" in report.process_must_end or attack.text in report.process_must_end
    else:
        assert reason == "max_attempts"
        timed_out, memory = "exceeded its time limit" in text, "memory limit" in text
        assert (timed_out, memory) == (attack.ends == "timeout", attack.ends == "memory"), text


def _in_a_process_of_its_own(attack: Attack) -> Report:
    command = [sys.executable, "-m", "harness.attack_stage", attack.family, attack.name]
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": f"{tests}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return Report(**json.loads(done.stdout.splitlines()[-1]))
