"""A private network, mount table and process tree, in which a whole node runs and with which it ends.

Several test runs then share a machine without seeing each other's iptables rules, mounts or /run, and
nothing has to be undone by hand: when the first process of the tree ends, the kernel ends the rest. Called
by harness.node. Needs root.
"""

import contextlib
import os
import random
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.toolchain import system_program
from harness.waiting import wait_for

_CGROUPS = Path("/sys/fs/cgroup")
# The first process: it hides what nodes share by path, says it is ready, and ends when its starter does,
# for then its input ends. Meanwhile bash reaps what is orphaned to it.
_INIT = """
set -e
mkdir -p /var/lib/cni /var/lib/kubelet
for folder in /run /var/lib/cni /var/lib/kubelet /var/log; do mount -t tmpfs tmpfs $folder; done
mount --make-rshared /
ip link set lo up
sysctl -qw net.ipv4.ip_forward=1
echo ready
read -r _ || true
"""


@dataclass(frozen=True)
class Network:
    """The addresses of one sandbox, out of a /16 of its own that this host routes into it.

    Attributes:
        number: the second byte of all addresses.
    """

    number: int

    def address(self, rest: str) -> str:
        """Complete an address or a range from its last two bytes, such as `0.2` or `1.0/24`."""
        return f"10.{self.number}.{rest}"

    @property
    def host(self) -> str:
        """This host, as seen from inside."""
        return self.address("0.1")

    @property
    def node(self) -> str:
        """The sandbox, as seen from anywhere."""
        return self.address("0.2")


class Sandbox:
    """The namespaces of one node, and its control group.

    Attributes:
        network: its addresses.
        cgroup: the control group below which pods belong, as the kubelet names it.
    """

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise PermissionError(
                "the node level runs containers, which needs root: sudo make test-node, "
                "or set LUNAQ_TEST_KUBECONFIG to a cluster that tests may use"
            )
        self._nsenter = system_program("nsenter", "scripts/setup-node")
        self._unshare: subprocess.Popen[str] | None = None
        self._init = 0

    def start(self) -> None:
        """Make the namespaces, and the network between them and this host."""
        flags = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._unshare = subprocess.Popen(
            ["unshare", *flags, "bash", "-c", _INIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if self._unshare.stdout is None or self._unshare.stdout.readline() != "ready\n":
            raise RuntimeError(
                "unshare failed, see above: namespaces need root and a kernel that allows them"
            )
        pid = self._unshare.pid
        self._init = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        self.network = self._connect()
        self.cgroup = f"/lunaq-{self.network.number}"
        self._make_cgroups()

    def wrap(self, command: Sequence[str]) -> list[str]:
        """Turn a command into one that runs inside."""
        return [self._nsenter, f"--target={self._init}", "--net", "--mount", "--pid", "--", *command]

    def wrap_network(self, command: Sequence[str]) -> list[str]:
        """Turn a command into one that has this network, and all else as outside."""
        return [self._nsenter, f"--target={self._init}", "--net", "--", *command]

    def run(self, *command: str, timeout: float = 120) -> str:
        """Run a command inside and give what it prints; RuntimeError with its text if it fails."""
        done = subprocess.run(
            self.wrap(command), capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def stop(self) -> None:
        """End every process inside, and remove the network and the control group."""
        if self._unshare is None or self._unshare.returncode is not None:
            return
        self._unshare.kill()  # takes the first process with it, and that all others
        for pipe in (self._unshare.stdin, self._unshare.stdout):
            if pipe:
                pipe.close()
        self._unshare.wait()
        if hasattr(self, "network"):
            _ip("link", "delete", self._interface, check=False)
            for group in self._cgroups():
                wait_for(lambda group=group: _remove_cgroup(group), f"{group} to be empty")

    @property
    def _interface(self) -> str:
        return f"lunaq{self.network.number}"

    def _connect(self) -> Network:
        """Take a free /16 and join this host and the sandbox by a pair of interfaces."""
        routes = subprocess.run(["ip", "-4", "route"], capture_output=True, text=True, check=True).stdout
        taken = {line.split(".")[1] for line in routes.splitlines() if line.startswith("10.")}
        for number in random.sample(range(64, 255), k=191):
            if str(number) in taken:
                continue
            self.network = network = Network(number)
            pair = ["link", "add", self._interface, "type", "veth", "peer", "name", "uplink"]
            # The name is the lock: it exists already if another run took the number just now.
            if _ip(*pair, "netns", str(self._init), check=False):
                break
        else:
            raise RuntimeError("no free network 10.64.0.0/16 to 10.254.0.0/16 on this machine")
        _ip("address", "add", f"{network.host}/30", "dev", self._interface)
        _ip("link", "set", self._interface, "up")
        self.run("ip", "address", "add", f"{network.node}/30", "dev", "uplink")
        self.run("ip", "link", "set", "uplink", "up")
        self.run("ip", "route", "add", "default", "via", network.host)
        _ip("route", "add", network.address("0.0/16"), "via", network.node)
        return network

    def _cgroups(self) -> list[Path]:
        """Give our control group's folders, one per hierarchy."""
        return [hierarchy / self.cgroup.removeprefix("/") for hierarchy in _hierarchies()]

    def _make_cgroups(self) -> None:
        """Make ours, and remove those that test runs left behind which were killed."""
        for hierarchy in _hierarchies():
            for left in hierarchy.glob("lunaq-*"):
                if not Path("/sys/class/net", left.name.replace("-", "")).exists():
                    _remove_cgroup(left)
        for group in self._cgroups():
            group.mkdir(exist_ok=True)
            for setting in ("cpuset.cpus", "cpuset.mems"):
                if (group / setting).exists() and not (group / setting).read_text().strip():
                    with contextlib.suppress(OSError):
                        (group / setting).write_text((group.parent / setting).read_text())


def _ip(*args: str, check: bool = True) -> bool:
    done = subprocess.run(["ip", *args], capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(args)} failed: {done.stderr}")
    return done.returncode == 0


def _hierarchies() -> list[Path]:
    """Give the roots of the control groups: one with cgroup v2, one per controller with v1."""
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS]
    return sorted({path.resolve() for path in _CGROUPS.iterdir() if (path / "cgroup.procs").exists()})


def _remove_cgroup(group: Path) -> bool:
    """Remove a control group with those below it; False while processes in it are still ending."""
    try:
        for folder, _, _ in os.walk(group, topdown=False):
            Path(folder).rmdir()
    except OSError:
        return False
    return True
