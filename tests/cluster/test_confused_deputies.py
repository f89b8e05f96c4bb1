"""Manifests by which the operator would act for somebody who lacks the right; each is refused, and why."""

import json
import socket
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from operators import App

from harness.waiting import wait_for

pytestmark = pytest.mark.usefixtures("operator")


@pytest.fixture
def victim(app):
    """A namespace with a Broker for all, a Queue and a Consumer of it."""
    app.secret()
    app.own_users(allowedNamespaces={"from": "All"})
    app.queue("emails")
    app.queue("legacy", queueName="legacy")
    app.allow_consuming()
    app.consumer()
    app.wait_ready("queue", "emails")
    app.wait_ready("queue", "legacy")
    wait_for(app.credentials, "its user")
    # Of two that are made in the same second the older one cannot be told.
    made = datetime.fromisoformat(app.get("queue", "legacy")["metadata"]["creationTimestamp"])
    wait_for(lambda: datetime.now(UTC) - made > timedelta(seconds=1), "a later second")
    return app


@pytest.fixture
def intruder(apiserver, app):
    """Somebody who may do everything in another namespace."""
    name = apiserver.new_namespace()
    yield App(apiserver, name, app.rabbitmq, app.vhost)
    apiserver.delete_namespace(name)


@contextmanager
def listener():
    """A server of the attacker's: yields its port and what reached it."""
    reached = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        try:
            while True:
                connection, _ = server.accept()
                connection.settimeout(5)
                reached.append(connection.recv(4096))
                connection.close()
        except OSError:
            return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1], reached
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


@contextmanager
def redirector(target):
    """An HTTP server that sends everybody to `target`; yields its port and the paths asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(302)
            self.send_header("Location", f"{target}{self.path}")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1], asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def refusal(app, kind, name, spec, **metadata) -> str:
    """Apply what the API server itself refuses; returns its words."""
    body = {
        "apiVersion": "lunaq.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": app.namespace, **metadata},
        "spec": spec,
    }
    done = app.cluster.kubectl("apply", "-f", "-", input=json.dumps(body), check=False)
    assert done.returncode != 0, f"{kind} {name} was taken"
    return done.stderr


# Brokers.


@pytest.mark.parametrize("field", ["credentialsSecretRef", "runtimeCredentialsSecretRef"])
def test_a_broker_of_the_attackers_with_somebodys_secret(intruder, field):
    intruder.secret("payments", labels={})
    intruder.secret("own")
    with listener() as (port, reached):
        refs = {"credentialsSecretRef": {"name": "own"}} | {field: {"name": "payments"}}
        intruder.broker(uri=f"amqp://127.0.0.1:{port}", **refs)
        ready = intruder.wait_reason("broker", "main", "SecretNotLabelled")
    assert "Secret payments is not given to this Broker" in ready["message"]
    assert reached == []


def test_a_broker_whose_secret_is_labelled_for_another(intruder):
    intruder.secret("rabbit", labels={"lunaq.dev/broker": "production"})
    intruder.broker()
    intruder.wait_reason("broker", "main", "SecretNotLabelled")


def test_a_management_api_that_sends_the_operator_elsewhere(intruder):
    intruder.secret()
    with listener() as (port, reached), redirector(f"http://127.0.0.1:{port}") as (front, asked):
        intruder.broker(management={"uri": f"http://127.0.0.1:{front}"})
        ready = intruder.wait_reason("broker", "main", "AccessRefused")
        assert "redirect, which is not followed" in ready["message"]
        assert asked
    assert reached == []


def test_a_management_api_that_is_not_the_brokers(intruder):
    intruder.secret()
    intruder.ours(
        "Broker",
        "main",
        {
            "uri": intruder.rabbitmq.bare_uri("not-there"),
            "management": {"uri": intruder.rabbitmq.management_uri},
            "credentialsSecretRef": {"name": "rabbit"},
        },
    )
    intruder.wait_reason("broker", "main", "AccessRefused")


def test_a_broker_with_credentials_in_its_uri(intruder):
    spec = {"uri": "amqp://user:word@127.0.0.1", "credentialsSecretRef": {"name": "x"}}
    assert "must not carry credentials" in refusal(intruder, "Broker", "main", spec)


def test_shared_credentials_are_not_for_other_namespaces(intruder):
    spec = {
        "uri": "amqp://127.0.0.1",
        "credentialsSecretRef": {"name": "x"},
        "allowedNamespaces": {"from": "All"},
    }
    assert "needs access PerConsumer" in refusal(intruder, "Broker", "main", spec)


# Queues.


def test_a_queue_on_a_broker_that_does_not_admit_it(victim, intruder):
    victim.own_users(allowedNamespaces={"from": "Same"})
    intruder.queue("mine", brokerRef={"name": "main", "namespace": victim.namespace})
    assert "does not admit" in intruder.wait_reason("queue", "mine", "NotAllowed")["message"]
    assert f"{intruder.namespace}:mine" not in victim.broker_names()


def test_a_queue_name_of_another_namespace(victim, intruder):
    ref = {"name": "main", "namespace": victim.namespace}
    intruder.queue("mine", brokerRef=ref, queueName="legacy")
    refused = intruder.wait_reason("queue", "mine", "NotAllowed")
    assert "only in the Broker's own namespace" in refused["message"]
    spec = {"brokerRef": ref, "queueName": f"{victim.namespace}:emails"}
    assert "queueName" in refusal(intruder, "Queue", "mine", spec)


@pytest.mark.parametrize("name", ["legacy", "legacy.x", "legacy.retry", "legacy.retry.1000", "legacy.dead"])
def test_a_queue_that_claims_the_name_of_anothers_queue_or_exchange(victim, name):
    victim.queue("younger", queueName=name)
    assert "is older and claims" in victim.wait_reason("queue", "younger", "Conflict")["message"]
    victim.role("consume-younger", names=["younger"])
    victim.bind("consume-younger", account="thief")
    victim.consumer("thief", queue="younger")
    assert "is older" in victim.wait_reason("consumer", "thief", "QueueNotReady")["message"]
    assert victim.credentials("thief") is None


def test_an_observed_queue_of_anothers_name(victim):
    victim.queue("seen", queueName="legacy", managementPolicy="Observe")
    victim.wait_reason("queue", "seen", "Conflict")


def test_dead_letters_of_another_namespace_or_broker(victim, intruder):
    ref = {"name": "main", "namespace": victim.namespace}
    spec = {"brokerRef": ref, "deadLetter": {"queueRef": {"name": "emails", "namespace": victim.namespace}}}
    assert "unknown field" in refusal(intruder, "Queue", "mine", spec)
    victim.secret("second", labels={"lunaq.dev/broker": "second"})
    victim.broker("second", credentialsSecretRef={"name": "second"})
    victim.queue("mine", brokerRef={"name": "second"}, deadLetter={"queueRef": {"name": "emails"}})
    assert "is on another Broker" in victim.wait_reason("queue", "mine", "InvalidSpec")["message"]


@pytest.mark.parametrize("name", ["emails.x", "emails.retry", ".*", "a|b", "emails\\z", "*", "Emails", "é"])
def test_a_name_built_to_collide_or_to_break_a_pattern(intruder, name):
    for kind, spec in (
        ("Queue", {"brokerRef": {"name": "main"}}),
        ("Consumer", {"queueRef": {"name": "emails"}, "handler": {"source": "return 1"}}),
    ):
        assert "name" in refusal(intruder, kind, name, spec)


def test_an_exchange_of_a_queues_name(victim):
    vhost = victim.vhost
    victim.rabbitmq.api("PUT", f"/exchanges/{vhost}/reports", {"type": "fanout", "durable": True})
    victim.queue("reports", queueName="reports")
    victim.wait_ready("queue", "reports")
    victim.bind("consume", account="reader", name="reader")
    victim.consumer("reader", queue="reports")
    clash = victim.wait_reason("consumer", "reader", "Conflict")
    assert "an exchange and a queue named reports" in clash["message"]
    assert victim.credentials("reader") is None


# Consumers.


def test_a_consumer_of_a_queue_whose_broker_does_not_admit_it_although_rbac_would(victim, intruder):
    victim.own_users(allowedNamespaces={"from": "Same"})
    victim.cluster.kubectl(
        "create", "rolebinding", "thief", "-n", victim.namespace, "--role=consume",
        f"--serviceaccount={intruder.namespace}:thief",
    )  # fmt: skip
    intruder.consumer("thief", queueRef={"name": "emails", "namespace": victim.namespace})
    intruder.wait_reason("consumer", "thief", "NotAllowed")
    assert intruder.credentials("thief") is None


def test_a_service_account_of_the_same_name_in_another_namespace(victim, intruder):
    intruder.consumer("worker", queueRef={"name": "emails", "namespace": victim.namespace})
    intruder.wait_reason("consumer", "worker", "NotAuthorized")
    name = wait_for(lambda: intruder.credentials("worker"), "a user without rights")[0]
    assert victim.users()[name] == ("^$", "^$", "^$")
    spec = {
        "queueRef": {"name": "emails", "namespace": victim.namespace},
        "handler": {"source": "return 1"},
        "serviceAccountName": f"system:serviceaccount:{victim.namespace}:worker",
    }
    assert "serviceAccountName" in refusal(intruder, "Consumer", "worker", spec)


_FOREIGN = {
    "Deployment": ("apps/v1", "thief", {
        "spec": {
            "selector": {"matchLabels": {"app": "x"}},
            "template": {
                "metadata": {"labels": {"app": "x"}},
                "spec": {"containers": [{"name": "x", "image": "example.test/x"}]},
            },
        },
    }),
    "ConfigMap": ("v1", "thief", {"data": {"theirs": "1"}}),
    "ServiceAccount": ("v1", "thief", {}),
    "Secret": ("v1", "thief.broker", {"stringData": {"username": "theirs", "password": "theirs"}}),
}  # fmt: skip


@pytest.mark.parametrize("kind", _FOREIGN)
def test_a_consumer_named_as_an_existing_object(victim, kind):
    api_version, name, body = _FOREIGN[kind]
    metadata = {"name": name, "namespace": victim.namespace}
    victim.cluster.apply({"apiVersion": api_version, "kind": kind, "metadata": metadata, **body})
    before = victim.get(kind.lower(), name)
    victim.bind("consume", account="thief", name="thief")
    victim.consumer("thief")
    told = victim.wait_reason("consumer", "thief", "NameConflict")
    assert f"{kind} {victim.namespace}/{name} exists and is not this Consumer's" in told["message"]
    after = victim.get(kind.lower(), name)
    same = ("data", "secrets", "metadata") if kind != "Deployment" else ("spec",)
    assert [after.get(key) for key in same] == [before.get(key) for key in same]


def test_a_secret_that_is_rewritten_to_name_somebody_else(victim):
    """Whoever edits the Consumer's Secret has no hold on other users."""
    stolen = victim.rabbitmq.username
    victim.kubectl(
        "patch",
        "secret",
        "worker.broker",
        "--type=merge",
        "-p",
        f'{{"stringData": {{"username": "{stolen}"}}}}',
    )
    wait_for(lambda: (victim.credentials() or (stolen,))[0] != stolen, "the Secret to be as it should be")
    assert "administrator" in victim.rabbitmq.api("GET", f"/users/{stolen}")["tags"]
