"""A RabbitMQ node of the tests' own, beside any other that runs on this machine.

Its program is the installed Debian package, or a newer one in a root file system of its own that
scripts/setup-brokers made. Called by the fixtures. With LUNAQ_TEST_AMQP_URI and LUNAQ_TEST_MANAGEMENT_URI
set, `rabbitmq` is that broker instead, and nothing is started.
"""

import http.client
import os
import resource
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from harness.broker import Broker
from harness.processes import Process, accepts, free_port, speaks_amqp
from harness.qpid import Qpid
from harness.toolchain import MissingToolError, rabbitmq_root, system_program
from harness.waiting import wait_for

SUITES = {"4.0": "trixie", "4.3": "sid"}
"""The Debian suite that has a newer version."""

_SERVER_BIN = Path("/usr/lib/rabbitmq/bin")
_OPEN_FILES = 20_000  # with 1,024 new connections hang at some 360 quorum queues
_CONFIG = """\
listeners.tcp.1 = 127.0.0.1:{amqp}
management.tcp.ip = 127.0.0.1
management.tcp.port = {management}
prometheus.tcp.ip = 127.0.0.1
prometheus.tcp.port = {prometheus}
default_user = {username}
default_pass = {password}
disk_free_limit.absolute = 100MB
log.file = rabbit.log
log.file.level = info
{settings}
"""


# Inside a root file system the node's folder has a name of its own, and /proc and /dev are this machine's.
# All of it is in a mount table that ends with the process.
_FOLDER_INSIDE = Path("/mnt")
_ENTER = """
set -e
mount --make-rprivate /
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
mount --bind "$2" "$1/mnt"
root=$1; shift 2
exec chroot "$root" "$@"
"""


class RabbitMQ(Broker):
    """One node on 127.0.0.1 with the plugins management and prometheus, its data in a temporary folder.

    Args:
        settings: more lines for rabbitmq.conf; `{folder}` is the node's folder as the node sees it.
        suite: the Debian suite whose RabbitMQ runs, in a root file system; empty for the installed package.
        plugins: to be enabled beside management and prometheus.
        files: more files in the node's folder, by name.

    Attributes:
        prometheus_port: of `/metrics`.
    """

    def __init__(
        self,
        settings: str = "",
        suite: str = "",
        plugins: Sequence[str] = (),
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        self._root = rabbitmq_root(suite) if suite else None
        if self._root is None and not (_SERVER_BIN / "rabbitmq-server").exists():
            raise MissingToolError(
                "rabbitmq-server is not installed: run scripts/setup-brokers as root (or make test-broker), "
                "or set LUNAQ_TEST_AMQP_URI and LUNAQ_TEST_MANAGEMENT_URI to a broker that tests may use"
            )
        management = free_port()
        super().__init__(
            "127.0.0.1", free_port(), f"http://127.0.0.1:{management}", "tests", secrets.token_hex(8)
        )
        self.prometheus_port = free_port()
        self._dir = Path(tempfile.mkdtemp(prefix="lq-rabbitmq-"))
        self._seen = self._dir if self._root is None else _FOLDER_INSIDE
        enabled = ["rabbitmq_management", "rabbitmq_prometheus", *plugins]
        (self._dir / "enabled_plugins").write_text(f"[{','.join(enabled)}].\n")
        for name, content in (files or {}).items():
            (self._dir / name).write_bytes(content)
        (self._dir / "env.conf").touch()
        config = _CONFIG.format(
            amqp=self.port,
            management=management,
            prometheus=self.prometheus_port,
            username=self.username,
            password=self.password,
            settings=settings.replace("{folder}", str(self._seen)),
        )
        (self._dir / "rabbitmq.conf").write_text(config)
        self._env = self._environment()
        epmd = "epmd" if self._root else system_program("epmd", "scripts/setup-brokers")
        epmd_command = self._enter([epmd, "-port", self._env["ERL_EPMD_PORT"]])
        self._epmd = Process("epmd", epmd_command, self._dir, self._env)
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = _OPEN_FILES if most == resource.RLIM_INFINITY else min(_OPEN_FILES, most)
        limit = ["prlimit", f"--nofile={files}:"]
        server = self._enter([str(_SERVER_BIN / "rabbitmq-server")])
        self._beam = Process("beam", [*limit, *server], self._dir, self._env)

    def _enter(self, command: Sequence[str]) -> list[str]:
        """Turn a command into one that runs where this node's programs are; its pid stays the command's."""
        if self._root is None:
            return list(command)
        return ["unshare", "--mount", "sh", "-c", _ENTER, "enter", str(self._root), str(self._dir), *command]

    def _environment(self) -> dict[str, str]:
        inherited = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        return inherited | {
            "HOME": str(self._seen),  # the Erlang cookie is made there
            "RABBITMQ_NODENAME": "rabbit@localhost",
            "ERL_EPMD_PORT": str(free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self._seen / "data"),
            "RABBITMQ_LOG_BASE": str(self._seen / "log"),
            "RABBITMQ_CONF_ENV_FILE": str(self._seen / "env.conf"),
            "RABBITMQ_CONFIG_FILE": str(self._seen / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self._seen / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._seen / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self._seen / "generated"),
            "RABBITMQ_PID_FILE": str(self._seen / "pid"),
            # The scripts then become the Erlang VM instead of starting it, so that its pid is ours.
            "RUNNING_UNDER_SYSTEMD": "1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} "
            "-kernel prevent_overlapping_partitions false +sbwt none +sbwtdcpu none +sbwtdio none",
        }

    def start(self) -> None:
        """Start the node and wait until it serves AMQP and the management API; nothing if it runs."""
        self.launch()
        self.await_ready()

    def launch(self) -> None:
        """Begin to start the node, if it does not run."""
        if not self._epmd.running:
            self._epmd.start()
            port = int(self._env["ERL_EPMD_PORT"])
            self._epmd.wait_until(lambda: accepts("127.0.0.1", port), "epmd to listen")
        if not self._beam.running:
            self._beam.start()

    def await_ready(self) -> None:
        """Wait until a launched node serves AMQP and the management API."""
        self._beam.wait_until(self._serving, "RabbitMQ to serve", timeout=180)

    def _serving(self) -> bool:
        try:
            self.api("GET", "/whoami")
        except (http.client.HTTPException, RuntimeError):
            return False
        return speaks_amqp(self.host, self.port) and accepts(self.host, self.prometheus_port)

    def shut_down(self) -> None:
        """End the node gracefully, its data kept: `start` brings it back."""
        self._beam.stop(timeout=60)

    def restart(self) -> None:
        """End the node gracefully and start it again on the same ports with the same data."""
        self.shut_down()
        self.start()

    def kill(self, *, settled: bool = True) -> None:
        """Crash the node by SIGKILL, its data kept: `start` brings it back.

        RabbitMQ writes the name of a new quorum queue to the disk up to a second after it confirmed
        the declaration; a queue younger than that never answers again. So this waits for the names
        first, unless `settled` is false.
        """
        if settled and self._beam.running:
            self.settle()
        self._beam.kill()

    def settle(self) -> None:
        """Wait until a crash could no longer lose a quorum queue that is declared now."""
        queues = self.api("GET", "/queues?disable_stats=true&enable_queue_totals=true")
        names = [
            f"{quote(queue['vhost'], safe='')}_{queue['name']}".encode()
            for queue in queues
            if queue.get("type") == "quorum" or queue.get("arguments", {}).get("x-queue-type") == "quorum"
        ]
        registry = self._dir / "data" / "rabbit@localhost" / "quorum" / "rabbit@localhost" / "names.dets"
        wait_for(
            lambda: all(name in registry.read_bytes() for name in names),
            "RabbitMQ to write its quorum queues' names to the disk",
            timeout=15,
        )

    def pause(self) -> None:
        """Freeze the node: connections stay open and nothing answers, until `resume`."""
        os.kill(self._beam.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen node go on."""
        os.kill(self._beam.pid, signal.SIGCONT)

    def ctl(self, *args: str) -> str:
        """Run rabbitmqctl (a second or two) and give what it prints; RuntimeError if it fails."""
        command = self._enter([str(_SERVER_BIN / "rabbitmqctl"), "--quiet", *args])
        done = subprocess.run(
            command, env=self._env, capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"rabbitmqctl {' '.join(args)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def log(self) -> str:
        """Give the node's whole log."""
        return (self._dir / "log" / "rabbit.log").read_text(errors="replace")

    def stop(self) -> None:
        """End everything this started and remove its data."""
        self._beam.kill()  # a graceful end takes 6 s and its data goes away anyhow
        self._epmd.kill()
        shutil.rmtree(self._dir, ignore_errors=True)


def broker_of_environment(which: str = "") -> Broker | None:
    """Give the broker that LUNAQ_TEST_AMQP_URI names, or None; MissingToolError if half-named.

    Args:
        which: the variables' ending, such as `_RABBITMQ43`.
    """
    name, management_name = f"LUNAQ_TEST_AMQP_URI{which}", f"LUNAQ_TEST_MANAGEMENT_URI{which}"
    text = os.environ.get(name)
    if not text:
        return None
    uri, management = urlsplit(text), os.environ.get(management_name)
    if not management:
        raise MissingToolError(
            f"{name} is set but {management_name} is not: the tests make a virtual host "
            "each through the management API, for example http://127.0.0.1:15672"
        )
    if uri.scheme not in {"amqp", "amqps"} or not uri.hostname:
        raise MissingToolError(f"{name} must look like amqp://user:password@host:5672/")
    port = uri.port or (5671 if uri.scheme == "amqps" else 5672)
    user, word = unquote(uri.username or "guest"), unquote(uri.password or "guest")
    kind = Qpid if which == "_QPID" else Broker
    broker = kind(uri.hostname, port, management.rstrip("/"), user, word)
    broker.scheme = uri.scheme
    return broker
