"""`make demo` shows the main job, and notices when it is not done."""

import importlib.util
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "demo"


@pytest.fixture(name="demo")
def load_demo():
    loader = SourceFileLoader("demo", str(SCRIPT))
    spec = importlib.util.spec_from_loader("demo", loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module
    loader.exec_module(module)
    yield module
    del sys.modules["demo"]


def test_the_demo_ends_well_and_tells_its_counts():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == (
        "demo: 23 published, 22 handled (1 after a retry), 1 publish denied by RBAC, 1 dead-lettered, 0 left"
    )


KINDS = {"n": "normal", "f": "flaky", "a": "audited", "p": "poison"}
SENT = {
    "n": {"attempts": 0},
    "f": {"attempts": 1},
    "a": {"attempts": 0, "audit": "PermissionDenied"},
}
DEAD = [({}, SimpleNamespace(message_id="p", headers={"x_dead_letter_reason": "max_attempts"}))]


def test_what_should_come_of_it_is_no_difference(demo):
    assert demo.differences(demo.Seen(0, 0, DEAD, SENT), KINDS) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"emails": 1}, "1 mails still wait"),
        ({"audit": 1}, "1 are in audit"),
        ({"duplicates": 1}, "1 were sent twice"),
        ({"dead": []}, "the dead letters are []"),
        ({"dead": DEAD * 2}, "the dead letters are"),
        ({"sent": {key: SENT[key] for key in "fa"}}, "the normal mail n was not sent"),
        ({"sent": SENT | {"f": {"attempts": 0}}}, "the record of the flaky mail"),
        ({"sent": SENT | {"a": {"attempts": 0, "audit": "written"}}}, "the record of the audited mail"),
        ({"sent": SENT | {"p": {"attempts": 0}}}, "the poison mail p was sent"),
    ],
)
def test_each_thing_that_can_go_wrong_is_noticed(demo, change, text):
    seen = demo.Seen(**({"emails": 0, "audit": 0, "dead": DEAD, "sent": SENT} | change))
    assert any(text in problem for problem in demo.differences(seen, KINDS))
