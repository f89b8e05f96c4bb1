"""Starts operators against the tests' API server, and makes the objects of one application."""

import base64
import json
import secrets
import sys
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote

from harness.processes import Process, free_port
from harness.waiting import wait_for

_HERE = Path(__file__).parent
_QUICK = {
    "runtime_image": "example.test/lunaq-runtime:1",
    "broker_recheck": 1.0,
    "queue_recheck": 1.0,
    "topology_recheck": 1.0,
    "source_recheck": 1.0,
    "withdrawal_grace": 3.0,
    "rotation_settle": 0.5,
    "rotation_deadline": 20.0,
    "denials_recheck": 0.5,
    "cleanup_deadline": 10.0,
}


class Operator:
    """One operator process; `settings` are fields of `Settings` other than those quick ones."""

    def __init__(self, cluster, folder, **settings) -> None:
        self.port = free_port()
        chosen = {
            **_QUICK,
            "lease_name": f"lq-{secrets.token_hex(4)}",
            "identity": secrets.token_hex(4),
            "health_port": self.port,
            "cluster_id": "test-cluster",
            **settings,
        }
        self.settings = chosen
        command = [sys.executable, str(_HERE / "operator_under_test.py"), json.dumps(chosen)]
        self.process = Process(f"operator-{self.port}", command, folder, env=cluster.environment())

    def start(self) -> "Operator":
        self.process.start()
        return self

    def wait_working(self) -> "Operator":
        self.process.wait_until(lambda: self.readiness().get("working"), "the operator to work")
        return self

    def readiness(self) -> dict:
        """Ask /readyz; empty while nothing answers."""
        try:
            return self.ask("/readyz")
        except OSError:
            return {}

    @property
    def exit_status(self) -> int | None:
        return self.process._popen.poll()

    def ask(self, path: str) -> dict:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)

    def stop(self) -> None:
        self.process.stop()


class App:
    """The objects of one application in one namespace, on one virtual host of a real RabbitMQ."""

    def __init__(self, cluster, namespace: str, rabbitmq, vhost: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.rabbitmq = rabbitmq
        self.vhost = vhost

    # What a user applies.

    def secret(self, name="rabbit", password=None, labels=None) -> None:
        data = {"username": self.rabbitmq.username, "password": password or self.rabbitmq.password}
        self.cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {
                    "name": name,
                    "namespace": self.namespace,
                    "labels": {"lunaq.dev/broker": "main"} if labels is None else labels,
                },
                "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
            }
        )

    def broker(self, name="main", uri=None, **spec) -> None:
        spec = {
            "uri": uri or self.rabbitmq.bare_uri(self.vhost),
            "credentialsSecretRef": {"name": "rabbit"},
        } | spec
        self.ours("Broker", name, spec)

    def own_users(self, **spec) -> None:
        """Apply the Broker with access PerConsumer."""
        self.broker(management={"uri": self.rabbitmq.management_uri}, **spec)

    def queue(self, name, **spec) -> None:
        annotations = spec.pop("annotations", {})
        self.ours("Queue", name, {"brokerRef": {"name": "main"}} | spec, annotations)

    def consumer(
        self, name="worker", queue="emails", source="return function() return true end", **spec
    ) -> None:
        spec = {"queueRef": {"name": queue}, "handler": {"source": source}} | spec
        self.ours("Consumer", name, spec)

    def ours(self, kind, name, spec, annotations=None) -> None:
        metadata = {"name": name, "namespace": self.namespace, "annotations": annotations or {}}
        self.cluster.apply(
            {"apiVersion": "lunaq.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}
        )

    def role(self, name, kind="Role", *, resources=("queues",), verbs=("consume",), names=()) -> None:
        rule = {"apiGroups": ["lunaq.dev"], "resources": list(resources), "verbs": list(verbs)}
        metadata = {"name": name} | ({"namespace": self.namespace} if kind == "Role" else {})
        self.cluster.apply(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": kind,
                "metadata": metadata,
                "rules": [rule | ({"resourceNames": list(names)} if names else {})],
            }
        )

    def bind(self, role, kind="Role", account="worker", name=None) -> None:
        self.cluster.apply(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": {"name": name or role, "namespace": self.namespace},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
                "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": self.namespace}],
            }
        )

    def allow_consuming(self, account="worker") -> None:
        self.role("consume")
        self.bind("consume", account=account)

    def allow_publishing(self, *queues, account="worker", name="publish") -> None:
        """Let the account publish to these Queues, to all of the namespace where none is named."""
        self.role("publisher", resources=("consumers",), verbs=("publish",))
        self.bind("publisher", account=account)
        self.role(name, verbs=("publish",), names=queues)
        self.bind(name, account=account)

    def start_with_own_user(self, **consumer) -> None:
        """Apply a Consumer with a user of its own that may consume from emails and publish to sent."""
        self.secret()
        self.own_users()
        self.queue("emails")
        self.queue("sent")
        self.allow_consuming()
        self.allow_publishing("sent")
        self.consumer(**consumer)
        self.wait_reason("consumer", "worker", "Progressing")

    # What it sees.

    def get(self, kind, name):
        return self.cluster.get(kind, name, "-n", self.namespace)

    def list(self, kind, *args) -> list:
        return (self.cluster.get(kind, "-n", self.namespace, *args) or {}).get("items", [])

    def kubectl(self, *args, **kwargs):
        return self.cluster.kubectl(*args, "-n", self.namespace, **kwargs)

    def condition(self, kind, name, type_="Ready") -> dict:
        found = (self.get(kind, name) or {}).get("status", {}).get("conditions", [])
        return next((one for one in found if one["type"] == type_), {})

    def wait_reason(self, kind, name, reason, timeout=60) -> dict:
        """Wait until the object's Ready has that reason, for the generation of now; return the condition."""

        def there():
            obj = self.get(kind, name) or {}
            ready = self.condition(kind, name)
            current = obj.get("metadata", {}).get("generation") == ready.get("observedGeneration")
            return ready if current and ready.get("reason") == reason else None

        def seen():
            return f"; it is {self.condition(kind, name)}"

        try:
            return wait_for(there, f"{kind} {name} to be {reason}", timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}{seen()}") from None

    def wait_ready(self, kind, name, timeout=60) -> dict:
        return self.wait_reason(kind, name, "Available", timeout)

    def broker_queue(self, name):
        """Return what the management API says of a queue, None where there is none."""
        try:
            return self.rabbitmq.api("GET", f"/queues/{quote(self.vhost, safe='')}/{quote(name, safe='')}")
        except RuntimeError as error:
            if getattr(error, "status", 0) == 404:
                return None
            raise

    def users(self) -> dict:
        """Return the permissions of the broker users on the virtual host, without the administrator's."""
        found = self.rabbitmq.api("GET", f"/vhosts/{quote(self.vhost, safe='')}/permissions")
        return {
            one["user"]: (one["configure"], one["write"], one["read"])
            for one in found
            if one["user"] != self.rabbitmq.username
        }

    def credentials(self, consumer="worker") -> tuple[str, str] | None:
        """Return what the Consumer's own Secret holds, None where there is none."""
        secret = self.get("secret", f"{consumer}.broker")
        if secret is None:
            return None
        username, password = (
            base64.b64decode(secret["data"][key]).decode() for key in ("username", "password")
        )
        return username, password

    def broker_names(self, what="queues") -> set:
        return {one["name"] for one in self.rabbitmq.api("GET", f"/{what}/{quote(self.vhost, safe='')}")}

    def publish(self, queue) -> None:
        body = {
            "properties": {"delivery_mode": 2},
            "routing_key": queue,
            "payload": "{}",
            "payload_encoding": "string",
        }
        done = self.rabbitmq.api("POST", f"/exchanges/{quote(self.vhost, safe='')}/amq.default/publish", body)
        assert done["routed"]

    def reasons_told(self, kind, name) -> set:
        """Return the reasons of the Events about an object."""
        events = self.list("events.events.k8s.io")
        return {
            event["reason"]
            for event in events
            if (event["regarding"]["kind"], event["regarding"]["name"]) == (kind, name)
        }
