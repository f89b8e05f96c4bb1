"""Starts programs that cannot outlive the tests, and reserves ports that nobody else will take.

Called by the harness modules; tests use the things these start.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.waiting import wait_for

_LOG_TAIL = 30
# Below Linux's range for outgoing connections, so that a port stays free while its server restarts.
_PORTS = range(15_000, 32_000)
_reservations: list[socket.socket] = []


def free_port() -> int:
    """Give a port of 127.0.0.1 that no other test run on this machine is given, until this process ends."""
    for port in random.sample(_PORTS, k=500):
        reservation = socket.socket(socket.AF_UNIX)
        try:
            reservation.bind(f"\0lunaq-test-port-{port}")
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            reservation.close()
            continue
        _reservations.append(reservation)
        return port
    raise RuntimeError("no free port among 500 tried on 127.0.0.1: is something listening on all of them?")


def release_ports() -> None:
    """Give back all reservations; for the end of a test run."""
    while _reservations:
        _reservations.pop().close()


def accepts(host: str, port: int) -> bool:
    """Tell whether something accepts TCP connections there."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def speaks_amqp(host: str, port: int) -> bool:
    """Tell whether a broker answers there: a forwarded port accepts even if nothing is behind it."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=2) as connection:
        connection.sendall(b"AMQP\x00\x00\x09\x01")
        return connection.recv(1) == b"\x01"  # a method frame: connection.start
    return False


class Process:
    """One program with its output in a file; killed by the kernel if the test run dies.

    Args:
        name: for error texts and the log's name.
        command: the program and its arguments.
        log_dir: where `<name>.log` is appended to.
        env: the whole environment; this process's own if None.
    """

    def __init__(
        self, name: str, command: Sequence[str], log_dir: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log = log_dir / f"{name}.log"
        self._env = dict(os.environ if env is None else env)
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id; RuntimeError if it is not started."""
        if self._popen is None:
            raise RuntimeError(f"{self.name} is not started")
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._popen is not None and self._popen.poll() is None

    def start(self) -> None:
        """Start it; what it prints goes to the log."""
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env,
                start_new_session=True,
            )

    def wait_until(self, ready, what: str, timeout: float = 60) -> None:
        """Wait for `ready()`; an early end of the process is an error at once, with its last lines."""

        def ready_or_dead() -> bool:
            if not self.running:
                raise RuntimeError(f"{self.name} ended while starting:\n{self.tail()}")
            return bool(ready())

        try:
            wait_for(ready_or_dead, what, timeout, retry_on=(OSError,))
        except AssertionError as error:
            raise RuntimeError(f"{error}\n{self.tail()}") from error

    def tail(self) -> str:
        """Give the last lines of the log, for error texts."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join([f"--- {self.log}", *lines[-_LOG_TAIL:]])

    def stop(self, timeout: float = 20) -> None:
        """End it by SIGTERM, after `timeout` seconds by SIGKILL; nothing if it has ended."""
        if self._popen is None:
            return
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
        try:
            self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it and what it started by SIGKILL, and wait until it is gone."""
        if self._popen is not None:
            if self._popen.poll() is None:
                os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()
