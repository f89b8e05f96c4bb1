"""What the tests may do with any cluster that runs pods.

The base of harness.node.Node; used itself for the cluster of LUNAQ_TEST_KUBECONFIG.
"""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from harness.images import Images
from harness.kubernetes import Cluster
from harness.relay import Relay
from harness.toolchain import system_program

_AMQP_PORT = 5672


class HelmError(RuntimeError):
    """Helm failed; the text is its command and what it printed."""


class PodCluster(Cluster):
    """A cluster that runs pods and has our images.

    Args:
        kubeconfig: the administrator's.
        images: what its pods may run.
    """

    def __init__(self, kubeconfig: Path, images: Images) -> None:
        super().__init__(kubeconfig)
        self.images = images

    def helm(self, *args: str, check: bool = True, timeout: float = 180) -> subprocess.CompletedProcess[str]:
        """Run helm against this cluster; HelmError if it fails and `check` is true."""
        done = subprocess.run(
            [self._helm(), *args],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self.environment(),
            check=False,
        )
        if check and done.returncode != 0:
            raise HelmError(f"helm {' '.join(args)} failed:\n{done.stdout}{done.stderr}")
        return done

    def _helm(self) -> str:
        return system_program("helm", "scripts/setup-node")

    def load(self, tar: Path) -> None:
        """Bring an image into the cluster from a docker-archive."""
        raise NotImplementedError(
            f"{tar}: images cannot be loaded into the cluster of LUNAQ_TEST_KUBECONFIG: push them to the "
            "registry of LUNAQ_TEST_IMAGE_PREFIX"
        )

    @contextlib.contextmanager
    def forward(self, namespace: str, service: str, port: int) -> Iterator[tuple[str, int]]:
        """Give the host and port at which this process reaches a Service, also after its pod has changed."""
        command = [
            self._kubectl,
            "port-forward",
            "-n",
            namespace,
            f"service/{service}",
            f":{port}",
            "--address=127.0.0.1",
        ]
        relay = Relay(command, Path(self._cache.name), self.environment())
        try:
            yield "127.0.0.1", relay.port
        finally:
            relay.close()

    def amqp_forward(
        self, namespace: str, service: str
    ) -> contextlib.AbstractContextManager[tuple[str, int]]:
        """Give the host and port at which this process reaches a Service's AMQP port."""
        return self.forward(namespace, service, _AMQP_PORT)

    def kill_pod(self, namespace: str, pod: str) -> None:
        """End a pod's processes as hard as this cluster lets us; its controller brings it back.

        Elsewhere that is a deletion without grace; `Node` sends SIGKILL.
        """
        self.kubectl("delete", "pod", pod, "-n", namespace, "--grace-period=0", "--force")

    def wait_ready(self, namespace: str, *selector: str, timeout: float = 120) -> None:
        """Wait until pods are ready; TimeoutError tells what their events say if they are not.

        Args:
            namespace: theirs.
            selector: arguments that name them, such as `pod/one` or `pod`, `-l`, `app=one`.
            timeout: in seconds.
        """
        waiting = ["wait", "--for=condition=Ready", f"--timeout={timeout:g}s", "-n", namespace, *selector]
        done = self.kubectl(*waiting, check=False, timeout=timeout + 30)
        if done.returncode != 0:
            told = self.kubectl("describe", "pods", "-n", namespace, check=False).stdout
            raise TimeoutError(f"{done.stderr}\n{told[-6000:]}")
