"""Rights hold as they are now, a file's change is seen, and what cannot be read denies."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING

import pytest

from lunaq_runtime.ids import Id
from lunaq_runtime.policy import ALLOW_ALL, DENY_ALL, Policy
from lunaq_runtime.policy_source import PolicyFile, PolicySource

if TYPE_CHECKING:
    from pathlib import Path

WORKER = Id("app", "worker")
CONSUME = Policy(consume=("app:emails",))


def text(*consume: str) -> str:
    entry = {"name": "p", "kind": "security.policy", "consumer": "worker", "consume": list(consume)}
    return json.dumps({"namespace": "app", "entries": [entry]})


def test_policies_are_looked_up_by_consumer_and_the_others_are_denied() -> None:
    source = PolicySource({WORKER: CONSUME})
    assert source.policy(WORKER) == CONSUME
    assert source.policy(Id("app", "other")) == DENY_ALL


def test_allow_all_allows_whoever_asks() -> None:
    assert PolicySource.allow_all().policy(WORKER) == ALLOW_ALL


def test_listeners_are_told_of_changes_only_and_one_that_fails_stops_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = PolicySource({})
    seen: list[Policy] = []

    def fail() -> None:
        raise RuntimeError("no")

    source.on_change(fail)
    source.on_change(lambda: seen.append(source.policy(WORKER)))
    source.replace({WORKER: CONSUME})
    source.replace({WORKER: CONSUME})
    source.replace({})
    assert seen == [CONSUME, DENY_ALL]
    assert "a listener to policy changes failed" in caplog.text


def test_a_forgotten_listener_is_not_told_any_more() -> None:
    class Listener:
        told = 0

        def changed(self) -> None:
            self.told += 1

    source = PolicySource({})
    kept, gone = Listener(), Listener()
    source.on_change(kept.changed)
    source.on_change(gone.changed)
    source.forget(gone)
    source.replace({WORKER: CONSUME})
    assert (kept.told, gone.told) == (1, 0)


def test_a_file_is_read_before_anybody_can_ask(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text("app:emails"))
    assert PolicyFile(path).policy(WORKER) == CONSUME


@pytest.mark.parametrize("content", [b"entries: [}", b"\xff\xfe", b"entries: 5", b"[[[[" * 2000])
def test_a_file_that_is_not_valid_denies_and_says_so_once(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text("app:emails"))
    source = PolicyFile(path)
    path.write_bytes(content)
    for _ in range(3):
        source.look()
    assert source.policy(WORKER) == DENY_ALL
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "everything is denied until it is mended" in errors[0].getMessage()


def test_a_missing_file_denies_until_it_is_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "policy.yaml"
    source = PolicyFile(path)
    source.look()
    assert source.policy(WORKER) == DENY_ALL
    assert caplog.text.count("cannot be read") == 1
    path.write_text(text("app:emails"))
    source.look()
    assert source.policy(WORKER) == CONSUME
    path.unlink()
    source.look()
    assert source.policy(WORKER) == DENY_ALL


def test_the_same_text_after_an_absence_holds_again(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text("app:emails"))
    source = PolicyFile(path)
    path.unlink()
    source.look()
    path.write_text(text("app:emails"))
    source.look()
    assert source.policy(WORKER) == CONSUME


async def test_a_swapped_link_of_a_mounted_config_map_is_seen_while_watching(tmp_path: Path) -> None:
    for version, queues in (("1", ["app:emails"]), ("2", [])):
        (tmp_path / version).mkdir()
        (tmp_path / version / "policy.yaml").write_text(text(*queues))
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "policy.yaml").symlink_to("..data/policy.yaml")
    source = PolicyFile(tmp_path / "policy.yaml")
    changed = asyncio.Event()
    source.on_change(changed.set)
    watching = asyncio.create_task(source.watch())
    assert source.policy(WORKER) == CONSUME
    (tmp_path / "..next").symlink_to("2")
    (tmp_path / "..next").rename(tmp_path / "..data")
    await asyncio.wait_for(changed.wait(), 30)
    assert source.policy(WORKER) == DENY_ALL
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
