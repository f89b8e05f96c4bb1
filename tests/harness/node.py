"""A whole one-node Kubernetes of the tests' own: real pods, Services and DNS, in a sandbox.

Called by the fixture `node`. With LUNAQ_TEST_KUBECONFIG set it is that cluster instead. Needs root.
"""

import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from harness.control_plane import ControlPlane, Endpoints
from harness.images import Built, Images, built_images
from harness.pod_cluster import PodCluster
from harness.processes import Process, accepts
from harness.sandbox import Sandbox
from harness.toolchain import kubernetes_program, system_program
from harness.waiting import wait_for

_SETUP = "scripts/setup-node"
_NAME = "node"
_PODS, _SERVICES, _API_SERVICE, _DNS_SERVICE = "1.0/24", "128.0/20", "128.1", "128.10"
_CONTAINERD = """\
version = 2
root = "{root}"
state = "/run/containerd"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Without CAP_SYS_RESOURCE runc cannot lower the score.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"
"""
_COREDNS = """\
.:53 {{
  bind {address}
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {kubeconfig} tests
  }}
  cache 5
}}
"""


class Node(PodCluster):
    """etcd, the control plane, containerd, the kubelet, kube-proxy and CoreDNS, as processes in a sandbox.

    This host reaches the addresses of pods and Services directly, and pods reach it at `host_address`.
    """

    def __init__(self) -> None:
        self._built = built_images()
        self._sandbox = Sandbox()
        self._dir = Path(tempfile.mkdtemp(prefix="lq-node-"))
        try:
            self._sandbox.start()
        except BaseException:
            self._clean_up()
            raise
        network = self._sandbox.network
        self.host_address = network.host
        endpoints = Endpoints(
            *(
                network.node,
                6443,
                2379,
                2380,
                10257,
                network.address(_SERVICES),
                network.address(_API_SERVICE),
            )
        )
        self._plane = ControlPlane(self._dir, endpoints, self._sandbox.wrap)
        self._plane.client("scheduler", "system:kube-scheduler")
        self._plane.client("kubelet", f"system:node:{_NAME}", "system:nodes")
        names = {name: self._built[name].reference for name in ("operator", "runtime", "rabbitmq")}
        super().__init__(self._dir / "pki" / "admin.conf", Images(**names, pull_policy="Never"))

    def start(self) -> None:
        """Start it and wait until the node is ready for pods."""
        plane, address = self._plane, self._plane.endpoints.address
        plane.etcd.start()
        plane.apiserver.start()
        containerd = self._start("containerd", self._containerd())
        with ThreadPoolExecutor(1) as importer:
            imported = importer.submit(self._import_all, containerd)
            plane.apiserver.wait_until(self._api_ready, "the node's API server to be ready", timeout=90)
            plane.controllers.start()
            self._start("kube-scheduler", self._scheduler())
            self._start("kube-proxy", self._proxy())
            dns = self._start("coredns", self._coredns())
            self.apply(self._dns_service())
            kubelet = self._start("kubelet", self._kubelet())
            dns.wait_until(lambda: accepts(address, 53), "CoreDNS to listen")
            kubelet.wait_until(self._node_ready, "the node to be ready", timeout=90)
            imported.result()
        wait_for(
            lambda: self.get("serviceaccount", "default", "-n", "default"), "the controller manager to act"
        )

    def stop(self) -> None:
        """End everything this started and remove its data."""
        super().stop()
        self._sandbox.stop()
        self._plane.stop()
        self._clean_up()

    def load(self, tar: Path) -> None:
        self._ctr("images", "import", str(tar))

    @contextlib.contextmanager
    def forward(self, namespace: str, service: str, port: int) -> Iterator[tuple[str, int]]:
        yield self.get("service", service, "-n", namespace)["spec"]["clusterIP"], port

    def kill_pod(self, namespace: str, pod: str) -> None:
        found = self.get("pod", pod, "-n", namespace)
        for status in found["status"]["containerStatuses"]:
            container = status["containerID"].removeprefix("containerd://")
            self._ctr("tasks", "kill", "--signal", "SIGKILL", container)

    def _helm(self) -> str:
        return kubernetes_program("helm", _SETUP)

    def _clean_up(self) -> None:
        self._sandbox.stop()
        shutil.rmtree(self._dir, ignore_errors=True)

    def _start(self, name: str, command: list[str]) -> Process:
        process = self._plane.process(name, command)
        process.start()
        return process

    def _api_ready(self) -> bool:
        ends = self._plane.endpoints
        if not accepts(ends.address, ends.api):
            return False
        return self.kubectl("get", "--raw=/readyz", check=False).returncode == 0

    def _node_ready(self) -> bool:
        node: dict[str, Any] | None = self.get("node", _NAME)
        conditions = node["status"].get("conditions", []) if node else []
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def _ctr(self, *args: str) -> str:
        return self._sandbox.run("ctr", "--namespace", "k8s.io", *args)

    def _import_all(self, containerd: Process) -> None:
        def serving() -> bool:
            with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
                return bool(self._ctr("version"))
            return False

        containerd.wait_until(serving, "containerd to serve")
        images: list[Built] = [self._built[name] for name in ("pause", "rabbitmq", "runtime", "operator")]
        for image in images:
            self.load(image.tar)

    def _write(self, name: str, text: str) -> str:
        path = self._dir / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return str(path)

    def _containerd(self) -> list[str]:
        address = self._sandbox.network.address
        pods = {
            "type": "host-local",
            "ranges": [[{"subnet": address(_PODS)}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        # Point to point, not a bridge: what is on one bridge would bypass kube-proxy's rules on its way back.
        plugins = [{"type": "ptp", "ipam": pods}]
        network = {"cniVersion": "0.4.0", "name": "lunaq", "plugins": plugins}
        self._write("cni/lunaq.conflist", json.dumps(network))
        config = _CONTAINERD.format(
            root=self._dir / "containerd", pause=self._built["pause"].reference, cni=self._dir / "cni"
        )
        program = system_program("containerd", _SETUP)
        return [program, "--config", self._write("containerd.toml", config)]

    def _scheduler(self) -> list[str]:
        config = self._plane.pki.path("scheduler.conf")
        program = kubernetes_program("kube-scheduler", _SETUP)
        return [program, f"--kubeconfig={config}", "--leader-elect=false", "--bind-address=127.0.0.1"]

    def _kubelet(self) -> list[str]:
        network, pki = self._sandbox.network, self._plane.pki
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": network.node,
            "authentication": {
                "x509": {"clientCAFile": pki.path("ca.crt")},
                "webhook": {"enabled": True},
                "anonymous": {"enabled": False},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self._sandbox.cgroup,
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "failSwapOn": False,
            "clusterDNS": [network.address(_DNS_SERVICE)],
            "clusterDomain": "cluster.local",
            "resolvConf": self._write("resolv.conf", f"nameserver {network.node}\n"),
            "podLogsDir": str(self._dir / "pods"),
            "volumePluginDir": str(self._dir / "volume-plugins"),
            "localStorageCapacityIsolation": False,
            "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
        }
        return [
            kubernetes_program("kubelet", _SETUP),
            f"--config={self._write('kubelet.json', json.dumps(config))}",
            f"--kubeconfig={pki.path('kubelet.conf')}",
            f"--hostname-override={_NAME}",
            f"--node-ip={network.node}",
            f"--root-dir={self._dir / 'kubelet'}",
            f"--cert-dir={pki.folder}",
        ]

    def _proxy(self) -> list[str]:
        network = self._sandbox.network
        return [
            kubernetes_program("kube-proxy", _SETUP),
            f"--kubeconfig={self.kubeconfig}",
            f"--hostname-override={_NAME}",
            "--proxy-mode=iptables",
            f"--cluster-cidr={network.address(_PODS)}",
            f"--bind-address={network.node}",
            "--conntrack-max-per-core=0",  # connection tracking cannot be configured from inside
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
            "--iptables-min-sync-period=100ms",
        ]

    def _coredns(self) -> list[str]:
        config = _COREDNS.format(address=self._sandbox.network.node, kubeconfig=self.kubeconfig)
        return [kubernetes_program("coredns", _SETUP), "-conf", self._write("Corefile", config)]

    def _dns_service(self) -> list[dict[str, Any]]:
        """Give the Service by which pods find CoreDNS, which is no pod here."""
        network = self._sandbox.network
        ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53}]
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system"},
            "spec": {"clusterIP": network.address(_DNS_SERVICE), "ports": ports},
        }
        labels = {"kubernetes.io/service-name": "kube-dns"}
        endpoints = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": "kube-dns-1", "namespace": "kube-system", "labels": labels},
            "addressType": "IPv4",
            "ports": ports,
            "endpoints": [{"addresses": [network.node], "conditions": {"ready": True}}],
        }
        return [service, endpoints]
