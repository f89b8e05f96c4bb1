"""A Kubernetes API server of the tests' own: RBAC, garbage collection and all controllers, but no node.

Called by the fixture `apiserver`. With LUNAQ_TEST_KUBECONFIG set it is that cluster instead.
"""

import contextlib
import http
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.control_plane import ControlPlane, Endpoints
from harness.kubernetes import Answer, Cluster, KubectlError
from harness.processes import accepts, free_port
from harness.proxy import path_of, read, write
from harness.toolchain import ROOT
from harness.waiting import wait_for

# The first address is the API server's own Service, which its certificate names.
_SERVICES = ("10.96.0.0/16", "10.96.0.1")


class ApiServer(Cluster):
    """etcd, kube-apiserver and kube-controller-manager on random ports of 127.0.0.1."""

    def __init__(self) -> None:
        self._dir = Path(tempfile.mkdtemp(prefix="lq-apiserver-"))
        endpoints = Endpoints("127.0.0.1", *(free_port() for _ in range(4)), *_SERVICES)
        self.control_plane = ControlPlane(self._dir, endpoints)
        super().__init__(self._dir / "pki" / "admin.conf")
        self._socket = self._dir / "proxy.sock"
        options = (f"--kubeconfig={self.kubeconfig}", f"--unix-socket={self._socket}")
        self._proxy = self.control_plane.process("kubectl-proxy", [self._kubectl, "proxy", *options])

    def start(self) -> None:
        """Start it and wait until it answers and its controllers act."""
        plane, ends = self.control_plane, self.control_plane.endpoints
        plane.etcd.start()
        plane.apiserver.start()
        plane.apiserver.wait_until(self._ready, "the API server to be ready", timeout=90)
        # The garbage collector looks for new kinds every 30 s only: it must find ours when it starts.
        if any((ROOT / "crds").glob("*.yaml")):
            self.install_crds()
        plane.controllers.start()
        plane.controllers.wait_until(
            lambda: accepts("127.0.0.1", ends.controllers), "the controller manager to listen"
        )
        wait_for(
            lambda: self.get("serviceaccount", "default", "-n", "default"),
            "the controller manager to make the default service account",
            timeout=60,
        )
        self._proxy.start()
        self._proxy.wait_until(self._socket.exists, "kubectl proxy to listen")

    def get(self, *args: str) -> Any:
        path = path_of(*args)
        if path and self._proxy.running:
            # Where the API server is away, kubectl says it best.
            with contextlib.suppress(OSError):
                status, found = read(self._socket, path)
                if status in (http.HTTPStatus.OK, http.HTTPStatus.NOT_FOUND):
                    return found
        return super().get(*args)

    def create(self, obj: Mapping[str, Any], namespace: str, *, dry_run: bool = False) -> Answer:
        path = path_of(obj["kind"].lower(), "-n", namespace)
        strict = "?fieldValidation=Strict" + ("&dryRun=All" if dry_run else "")
        return self._write("POST", f"{path}{strict}", obj)

    def replace(self, obj: Mapping[str, Any], namespace: str) -> Answer:
        path = path_of(obj["kind"].lower(), obj["metadata"]["name"], "-n", namespace)
        _, stored = read(self._socket, path or "")
        metadata = dict(obj["metadata"]) | {"resourceVersion": stored["metadata"]["resourceVersion"]}
        return self._write("PUT", f"{path}?fieldValidation=Strict", dict(obj) | {"metadata": metadata})

    def _write(self, method: str, path: str, obj: Mapping[str, Any]) -> Answer:
        status, answer = write(self._socket, method, path, obj)
        if status >= http.HTTPStatus.BAD_REQUEST:
            return Answer(refusal=answer["message"])
        return Answer(answer)

    def _ready(self) -> bool:
        ends = self.control_plane.endpoints
        if not accepts(ends.address, ends.api):
            return False
        return self.kubectl("get", "--raw=/readyz", check=False).returncode == 0

    def stop_api(self) -> None:
        """Crash the API server alone, its data kept: clients see refused connections."""
        self.control_plane.apiserver.kill()

    def start_api(self) -> None:
        """Start the API server again after stop_api, and wait until it is ready."""
        self.control_plane.apiserver.start()
        self.control_plane.apiserver.wait_until(self._ready, "the API server to be ready again", timeout=90)

    def stop(self) -> None:
        """End everything this started and remove its data."""
        self.control_plane.stop()
        super().stop()
        shutil.rmtree(self._dir, ignore_errors=True)


__all__ = ["ApiServer", "KubectlError"]
