"""etcd, kube-apiserver and kube-controller-manager, started as plain processes.

Called by harness.apiserver, on 127.0.0.1, and by harness.node, within the node's own network.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.pki import Pki
from harness.processes import Process
from harness.toolchain import kubernetes_program, system_program

Wrap = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True)
class Endpoints:
    """Where the parts of a control plane listen.

    Attributes:
        address: of the API server.
        api: port of the API server.
        etcd: client port of etcd.
        etcd_peer: port of etcd for its peers, of which there are none.
        controllers: port of the controller manager.
        services: the range of Service addresses, as a CIDR.
        first_service: the first address of that range, which is the API server's own Service.
    """

    address: str
    api: int
    etcd: int
    etcd_peer: int
    controllers: int
    services: str
    first_service: str

    @property
    def server(self) -> str:
        """The API server's URL."""
        return f"https://{self.address}:{self.api}"


class ControlPlane:
    """A control plane with RBAC on; its kubeconfig files are in `pki`.

    Args:
        folder: an existing folder for its data, keys and logs.
        endpoints: where to listen.
        wrap: turns a command into one that runs elsewhere, such as in another network namespace.
    """

    def __init__(self, folder: Path, endpoints: Endpoints, wrap: Wrap = list) -> None:
        self.folder = folder
        self.endpoints = endpoints
        self._wrap = wrap
        self._processes: list[Process] = []
        for name in ("pki", "log"):
            (folder / name).mkdir(exist_ok=True)
        self.pki = Pki(folder / "pki")
        self._sign()
        self.etcd = self.process("etcd", self._etcd())
        self.apiserver = self.process("kube-apiserver", self._apiserver())
        self.controllers = self.process("kube-controller-manager", self._controllers())

    def process(self, name: str, command: Sequence[str]) -> Process:
        """Prepare one more process of this cluster, with its log beside the others."""
        process = Process(name, self._wrap(command), self.folder / "log")
        self._processes.append(process)
        return process

    def client(self, name: str, user: str, group: str | None = None) -> Path:
        """Give the kubeconfig of a new user."""
        self.pki.client(name, user, group)
        return self.pki.kubeconfig(name, self.endpoints.server)

    def stop(self) -> None:
        """End all its processes, the latest first; their data stays until the folder goes."""
        for process in reversed(self._processes):
            process.kill()

    def _sign(self) -> None:
        names = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
        addresses = ("127.0.0.1", self.endpoints.address, self.endpoints.first_service)
        self.pki.server("apiserver", names, addresses)
        self.client("admin", "admin", "system:masters")
        self.client("controllers", "system:kube-controller-manager")
        self.pki.client("kubelet-client", "kube-apiserver", "system:masters")

    def _etcd(self) -> list[str]:
        client, peer = (
            f"http://127.0.0.1:{port}" for port in (self.endpoints.etcd, self.endpoints.etcd_peer)
        )
        return [
            system_program("etcd", "scripts/setup-cluster"),
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
        ]

    def _apiserver(self) -> list[str]:
        ends, path = self.endpoints, self.pki.path
        return [
            kubernetes_program("kube-apiserver"),
            f"--etcd-servers=http://127.0.0.1:{ends.etcd}",
            f"--bind-address={ends.address}",
            f"--advertise-address={ends.address}",
            f"--secure-port={ends.api}",
            f"--service-cluster-ip-range={ends.services}",
            f"--tls-cert-file={path('apiserver.crt')}",
            f"--tls-private-key-file={path('apiserver.key')}",
            f"--client-ca-file={path('ca.crt')}",
            f"--service-account-key-file={path('sa.pub')}",
            f"--service-account-signing-key-file={path('sa.key')}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
            f"--cert-dir={self.pki.folder}",
            f"--kubelet-client-certificate={path('kubelet-client.crt')}",
            f"--kubelet-client-key={path('kubelet-client.key')}",
            "--kubelet-preferred-address-types=InternalIP",
            "--shutdown-delay-duration=0s",
        ]

    def _controllers(self) -> list[str]:
        return [
            kubernetes_program("kube-controller-manager"),
            f"--kubeconfig={self.pki.path('controllers.conf')}",
            f"--service-account-private-key-file={self.pki.path('sa.key')}",
            f"--root-ca-file={self.pki.path('ca.crt')}",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.endpoints.controllers}",
            f"--cert-dir={self.pki.folder}",
            "--node-cidr-mask-size=24",
        ]
