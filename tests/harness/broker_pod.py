"""A RabbitMQ in a pod, as a team would run it beside Lunaq; its data survive its container.

Called by the fixture `broker_pod`.
"""

import contextlib
import http.client
import secrets
from typing import Any
from urllib.parse import quote

from harness.broker import Broker
from harness.pod_cluster import PodCluster
from harness.processes import speaks_amqp
from harness.waiting import wait_for

_NAME = "rabbitmq"
_AMQP, _MANAGEMENT, _PROMETHEUS = 5672, 15672, 15692
_CONFIG = """\
default_user = {username}
default_pass = {password}
loopback_users = none
disk_free_limit.absolute = 100MB
"""
_KILL = 'for p in /proc/[0-9]*; do [ "$(cat $p/comm)" = beam.smp ] && kill -9 ${p#/proc/}; done; true'


class BrokerPod(Broker):
    """One RabbitMQ as a Deployment and a Service in a namespace of its own.

    `host`, `port`, `uri` and `management_uri` are for this process; `cluster_bare_uri`,
    `cluster_uri` and `cluster_management_uri` for what runs in the cluster.

    Args:
        cluster: where it runs.

    Attributes:
        namespace: where it is.
        service: its Service, for AMQP, management and Prometheus.
    """

    service = _NAME

    def __init__(self, cluster: PodCluster) -> None:
        self._cluster = cluster
        self._forwards = contextlib.ExitStack()
        self.namespace = cluster.new_namespace()
        super().__init__("", 0, "", "tests", secrets.token_hex(8))

    @property
    def cluster_host(self) -> str:
        """The name by which pods of any namespace reach it."""
        return f"{self.service}.{self.namespace}.svc.cluster.local"

    @property
    def cluster_management_uri(self) -> str:
        """The management API's URI for the operator."""
        return f"http://{self.cluster_host}:{_MANAGEMENT}"

    def cluster_bare_uri(self, vhost: str = "/") -> str:
        """Give the URI without credentials that a Broker resource carries."""
        return f"amqp://{self.cluster_host}:{_AMQP}/{quote(vhost, safe='')}"

    def cluster_uri(self, vhost: str = "/") -> str:
        """Give the URI with the administrator's credentials for a pod."""
        return f"amqp://{self.username}:{self.password}@{self.cluster_host}:{_AMQP}/{quote(vhost, safe='')}"

    def secret(self, namespace: str, name: str, broker: str) -> dict[str, Any]:
        """Give a Secret of the administrator's credentials, labelled for the Broker resource `broker`."""
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace, "labels": {"lunaq.dev/broker": broker}},
            "stringData": {"username": self.username, "password": self.password},
        }

    def start(self) -> None:
        """Apply it and wait until it serves this process."""
        self._cluster.apply([self._config_map(), self._deployment(), self._service()])
        self._cluster.kubectl(
            *("rollout", "status", f"deployment/{_NAME}", "-n", self.namespace, "--timeout=180s"), timeout=200
        )
        self._connect()

    def restart(self) -> None:
        """Stop and start the broker within its container: connections drop, messages stay."""
        self._exec("rabbitmqctl", "stop_app")
        self._exec("rabbitmqctl", "start_app")
        self._wait_serving()

    def restart_container(self) -> None:
        """End the broker gracefully by SIGTERM; the kubelet starts another container on the same data."""
        self._end_container("kill 1")

    def kill(self) -> None:
        """Crash the broker by SIGKILL; the kubelet starts another container on the same data."""
        self._end_container(_KILL)

    def ctl(self, *args: str) -> str:
        """Run rabbitmqctl in the pod and give what it prints."""
        return self._exec("rabbitmqctl", "--quiet", *args)

    def stop(self) -> None:
        """Begin to delete it with its namespace."""
        self._forwards.close()
        self._cluster.delete_namespace(self.namespace)

    def _exec(self, *command: str) -> str:
        return self._cluster.kubectl(
            "exec", "-n", self.namespace, f"deployment/{_NAME}", "--", *command
        ).stdout

    def _restarts(self) -> int:
        pods = self._cluster.get("pods", "-n", self.namespace, "-l", f"app={_NAME}")["items"]
        return sum(status["restartCount"] for pod in pods for status in pod["status"]["containerStatuses"])

    def _end_container(self, script: str) -> None:
        before = self._restarts()
        self._cluster.kubectl(
            *("exec", "-n", self.namespace, f"deployment/{_NAME}", "--", "sh", "-c", script), check=False
        )
        wait_for(lambda: self._restarts() > before, "the broker's container to start again", timeout=180)
        self._cluster.wait_ready(self.namespace, "pod", "-l", f"app={_NAME}")
        self._connect()

    def _connect(self) -> None:
        """Find out how this process reaches it; a forward does not survive the container it led to."""
        self._forwards.close()
        forward = self._cluster.forward
        self.host, self.port = self._forwards.enter_context(forward(self.namespace, self.service, _AMQP))
        host, port = self._forwards.enter_context(forward(self.namespace, self.service, _MANAGEMENT))
        self.management_uri = f"http://{host}:{port}"
        self._wait_serving()

    def _wait_serving(self) -> None:
        def serving() -> bool:
            self.api("GET", "/whoami")
            return speaks_amqp(self.host, self.port)

        not_yet = (OSError, http.client.HTTPException, RuntimeError)
        wait_for(serving, "the broker's pod to serve", timeout=120, retry_on=not_yet)

    def _config_map(self) -> dict[str, Any]:
        config = _CONFIG.format(username=self.username, password=self.password)
        plugins = "[rabbitmq_management,rabbitmq_prometheus].\n"
        return self._object("v1", "ConfigMap", data={"rabbitmq.conf": config, "enabled_plugins": plugins})

    def _service(self) -> dict[str, Any]:
        named = {"amqp": _AMQP, "management": _MANAGEMENT, "prometheus": _PROMETHEUS}
        ports = [{"name": name, "port": port} for name, port in named.items()]
        return self._object("v1", "Service", spec={"selector": {"app": _NAME}, "ports": ports})

    def _deployment(self) -> dict[str, Any]:
        files = ("rabbitmq.conf", "enabled_plugins")
        mounts = [{"name": "config", "mountPath": f"/etc/rabbitmq/{file}", "subPath": file} for file in files]
        container = {
            "name": _NAME,
            "image": self._cluster.images.rabbitmq,
            "imagePullPolicy": self._cluster.images.pull_policy,
            # The data's folder is named after the node: a pod's own name would lose it.
            "env": [{"name": "RABBITMQ_NODENAME", "value": "rabbit@localhost"}],
            "volumeMounts": [{"name": "data", "mountPath": "/var/lib/rabbitmq"}, *mounts],
            "readinessProbe": {"tcpSocket": {"port": _AMQP}, "periodSeconds": 1},
            "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
        }
        pod = {
            "containers": [container],
            "volumes": [{"name": "data", "emptyDir": {}}, {"name": "config", "configMap": {"name": _NAME}}],
            "terminationGracePeriodSeconds": 10,
        }
        labels = {"app": _NAME}
        template = {"metadata": {"labels": labels}, "spec": pod}
        spec = {"strategy": {"type": "Recreate"}, "selector": {"matchLabels": labels}, "template": template}
        return self._object("apps/v1", "Deployment", spec=spec)

    def _object(self, version: str, kind: str, **body: Any) -> dict[str, Any]:
        metadata = {"name": _NAME, "namespace": self.namespace}
        return {"apiVersion": version, "kind": kind, "metadata": metadata, **body}
