"""Credentials come from a mounted Secret's files, as they are at the moment of asking."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.credentials import MountedCredentials

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, username: str, password: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "username").write_text(username)
    (folder / "password").write_text(password)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_one_newline_at_the_end_belongs_to_the_editor(tmp_path: Path, end: str) -> None:
    write(tmp_path, f"me{end}", f" p@ss\n{end}" if end == "\n" else f" p@ss{end}")
    assert MountedCredentials(tmp_path)() == ("me", " p@ss\n" if end == "\n" else " p@ss")


def test_a_rotated_secret_is_seen_at_the_next_call(tmp_path: Path) -> None:
    credentials = MountedCredentials(tmp_path)
    write(tmp_path, "a", "1")
    assert credentials() == ("a", "1")
    write(tmp_path, "b", "2")
    assert credentials() == ("b", "2")


def test_both_values_are_of_one_version_while_the_kubelet_swaps(tmp_path: Path) -> None:
    write(tmp_path / "v1", "a", "1")
    (tmp_path / "..data").symlink_to("v1")
    # As in the midst of a swap: the links of the keys are of another version already.
    write(tmp_path / "v2", "b", "2")
    (tmp_path / "username").symlink_to("v2/username")
    (tmp_path / "password").symlink_to("v2/password")
    assert MountedCredentials(tmp_path)() == ("a", "1")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "has no key 'password': add it to the Secret that is mounted there"),
        (b"\n", "has an empty key 'password'"),
        (b"secret\xff", "has a key 'password' that is not UTF-8 text"),
    ],
)
def test_a_key_that_cannot_be_used_is_named_without_its_value(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    (tmp_path / "username").write_text("me")
    if content is not None:
        (tmp_path / "password").write_bytes(content)
    with pytest.raises(BrokerError) as caught:
        MountedCredentials(tmp_path)()
    assert caught.value.reason == "connection"
    assert reason in str(caught.value)
    assert "secret" not in str(caught.value)
