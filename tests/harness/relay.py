"""A port of this machine that keeps leading to a Service, whatever happens to the pods behind it.

`kubectl port-forward` ends, with all it carries, as soon as one connection through it is refused or
reset, as while a broker restarts. So each connection gets a forward of its own, at some 0.2 s each.
Called by harness.pod_cluster, for clusters whose addresses this process does not reach.
"""

import contextlib
import itertools
import re
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

from harness.processes import Process

_CHUNK = 65_536
_FORWARDING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+)")


class Relay:
    """Listens on 127.0.0.1 and passes each connection to a forward of its own.

    Args:
        command: a `kubectl port-forward` that chooses its local port.
        log_dir: where the forwards log to.
        env: their environment.

    Attributes:
        port: where this listens.
    """

    def __init__(self, command: Sequence[str], log_dir: Path, env: dict[str, str]) -> None:
        self._command = command
        self._log_dir = log_dir
        self._env = env
        self._numbers = itertools.count()
        self._open: set[Process] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name=f"relay-{self.port}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, and end all connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        with self._lock:
            for forward in self._open:
                forward.kill()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # shut down
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        name = f"forward-{self.port}-{next(self._numbers)}"
        forward = Process(name, self._command, self._log_dir, self._env)
        with (
            connection,
            contextlib.suppress(RuntimeError),
        ):  # not forwarded: the client sees its connection end
            with self._lock:
                forward.start()
                self._open.add(forward)
            try:
                self._pass_on(connection, forward)
            finally:
                with self._lock:
                    forward.kill()
                    self._open.discard(forward)

    def _pass_on(self, connection: socket.socket, forward: Process) -> None:
        forward.wait_until(lambda: _FORWARDING.search(forward.log.read_text()), "kubectl to forward", 20)
        found = _FORWARDING.search(forward.log.read_text())
        port = int(found[1]) if found else 0
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as behind:
            back = threading.Thread(target=_copy, args=(behind, connection), daemon=True)
            back.start()
            _copy(connection, behind)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Pass on what arrives until either side ends, then end both."""
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
    for side in (source, target):
        with contextlib.suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)
