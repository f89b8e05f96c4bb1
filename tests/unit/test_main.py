"""The command line: what it says about a document, and how a process lives and ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from harness.waiting import wait_for
from lunaq_runtime.main import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DOCUMENT = """
entries:
  - {id: broker, kind: queue.driver.memory}
  - {id: emails, kind: queue.queue}
  - {id: worker, kind: queue.consumer, queue: emails, method: handle_email}
"""
HANDLER = "function handle_email(message) end\n"
RIGHTS = "entries: [{id: p, kind: security.policy, consumer: worker, consume: [emails]}]\n"


class Running:
    """A started `lunaq-runtime run`; its log is read from a file."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lunaq_runtime", "run", str(folder / "app.yaml"), *arguments],
                stderr=log,
                stdout=log,
            )

    @property
    def url(self) -> str:
        """Where it serves, once it says so."""

        def port() -> re.Match[str] | None:
            assert self.process.poll() is None, self.log.read_text()
            return re.search(r"on port (\d+)", self.log.read_text())

        return f"http://127.0.0.1:{wait_for(port, 'the process to serve', timeout=60)[1]}"

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as answer:  # noqa: S310 - our own URL
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def await_status(self, path: str, status: int) -> None:
        wait_for(lambda: self.status(path) == status, f"{path} to answer {status}", timeout=60)

    def end(self) -> int:
        return self.process.wait(timeout=60)


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    (tmp_path / "app.yaml").write_text(DOCUMENT)
    (tmp_path / "worker.lua").write_text(HANDLER)
    return tmp_path


@pytest.fixture(name="start")
def _start(folder: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(*arguments: str) -> Running:
        started.append(Running(folder, "--health-host", "127.0.0.1", *arguments))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


def test_check_says_ok_and_repeats_the_warnings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "app.yaml").write_text(DOCUMENT.replace("{id: emails", "{colour: red, id: emails"))
    assert main(["check", str(folder / "app.yaml")]) == 0
    out, err = capsys.readouterr()
    assert out == "ok: 1 consumers, 1 queues\n"
    assert "colour is not a known field and is ignored" in err


def test_check_names_the_line_of_lua_that_does_not_compile(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "worker.lua").write_text("local x = 1\nfunction (\n")
    assert main(["check", str(folder / "app.yaml")]) == 2
    assert "consumer app:worker: worker.lua:2:" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_document_that_cannot_be_run_ends_with_2_and_every_mistake(
    folder: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "app.yaml").write_text(
        DOCUMENT + "  - {id: a, kind: nothing}\n  - {id: b, kind: queue.consumer}\n"
    )
    assert main([command, str(folder / "app.yaml")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("app.yaml cannot be run:")
    assert [line.partition(": ")[0] for line in lines[1:]] == [
        "  entries[3] (nothing app:a) kind",
        "  entries[4] (queue.consumer app:b) queue",
        "  entries[4] (queue.consumer app:b) func",
    ]


def test_help_shows_a_whole_document_and_how_to_grant(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["run", "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
    assert "kind: queue.consumer" in (text := capsys.readouterr().out)
    assert "What is not granted is denied" in text


def test_policy_and_allow_all_exclude_each_other(folder: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", str(folder / "app.yaml"), "--allow-all", "--policy", "p.yaml"])
    assert ended.value.code == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_becomes_ready_and_ends_with_0_on_a_signal(
    start: Callable[..., Running], number: signal.Signals
) -> None:
    running = start("--allow-all", "--health-port", "0")
    running.await_status("/readyz", 200)
    assert running.status("/healthz") == 200
    assert running.status("/metrics") == 200
    running.process.send_signal(number)
    assert running.end() == 0
    lines = [json.loads(line) for line in running.log.read_text().splitlines()]
    assert "draining" in [line["message"] for line in lines]


def test_a_right_that_comes_and_goes_in_the_policy_file_is_followed(
    start: Callable[..., Running], folder: Path
) -> None:
    policy = folder / "policy.yaml"
    running = start("--policy", str(policy), "--health-port", "0")
    assert running.status("/readyz") == 503
    assert running.status("/healthz") == 200
    policy.write_text(RIGHTS)
    running.await_status("/readyz", 200)
    policy.write_text("entries: []\n")
    running.await_status("/readyz", 503)


def test_a_document_without_rights_runs_and_says_how_to_grant_them(start: Callable[..., Running]) -> None:
    running = start("--health-port", "0", "--log-format", "console")
    assert running.status("/readyz") == 503
    assert "consumer app:worker may do nothing: add a security.policy entry for it" in running.log.read_text()


def test_a_health_port_that_is_taken_ends_the_process_with_1(start: Callable[..., Running]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        running = start("--allow-all", "--health-port", str(taken.getsockname()[1]))
        assert running.end() == 1
    assert "cannot serve health on 127.0.0.1, port" in running.log.read_text()


def test_a_broker_url_that_is_none_ends_with_2_and_without_its_password(
    start: Callable[..., Running],
) -> None:
    running = start("--allow-all", "--health-port", "0", "--broker-url", "http://me:secret@host")
    assert running.end() == 2
    assert "--broker-url url: the scheme must be amqp or amqps" in running.log.read_text()
    assert "secret" not in running.log.read_text()


def test_a_broker_that_is_away_makes_a_process_neither_ready_nor_ill(start: Callable[..., Running]) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take the port
        port = reserved.getsockname()[1]
        running = start(
            "--allow-all", "--health-port", "0", "--broker-url", f"amqp://me:secret@127.0.0.1:{port}/"
        )
        wait_for(lambda: "cannot connect" in running.log.read_text(), "a failed connect", timeout=60)
        assert running.status("/readyz") == 503
        assert running.status("/healthz") == 200
        running.process.terminate()
        assert running.end() == 0
    assert "secret" not in running.log.read_text()
