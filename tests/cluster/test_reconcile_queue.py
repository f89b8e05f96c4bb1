"""Queues, reconciled by a running operator on a real RabbitMQ."""

import time

import pytest

from harness.waiting import wait_for

pytestmark = pytest.mark.usefixtures("operator")


@pytest.fixture
def ready_broker(app):
    app.secret()
    app.broker()
    app.wait_ready("broker", "main")
    return app


def test_a_queue_declares_its_topology_and_says_so(ready_broker):
    app = ready_broker
    app.queue("emails", retry={"delays": ["1s", "1m"]})
    app.wait_ready("queue", "emails")
    name = f"{app.namespace}:emails"
    assert app.broker_names() == {name, f"{name}.dead", f"{name}.retry.1000", f"{name}.retry.60000"}
    assert {f"{name}.x", f"{name}.retry"} <= app.broker_names("exchanges")
    status = app.get("queue", "emails")["status"]
    assert (status["queueID"], status["brokerQueueName"], status["exchange"]) == (name, name, f"{name}.x")
    assert (status["ready"], status["deadLettered"]) == (0, 0)


def test_the_status_follows_the_number_of_messages(ready_broker):
    app = ready_broker
    app.queue("emails")
    app.wait_ready("queue", "emails")
    app.publish(f"{app.namespace}:emails")
    app.publish(f"{app.namespace}:emails.dead")
    wait_for(lambda: app.get("queue", "emails")["status"].get("ready") == 1, "the status to count")
    wait_for(lambda: app.get("queue", "emails")["status"].get("deadLettered") == 1, "the dead letters")


def test_what_was_deleted_by_hand_is_declared_again_and_told(ready_broker):
    app = ready_broker
    app.queue("emails")
    app.wait_ready("queue", "emails")
    name, vhost = f"{app.namespace}:emails".replace(":", "%3A"), app.vhost
    app.rabbitmq.api("DELETE", f"/queues/{vhost}/{name}")
    app.rabbitmq.api("DELETE", f"/exchanges/{vhost}/{name}.x")
    wait_for(lambda: f"{app.namespace}:emails" in app.broker_names(), "the queue to come back")
    wait_for(lambda: f"{app.namespace}:emails.x" in app.broker_names("exchanges"), "the exchange as well")
    wait_for(lambda: "Healed" in app.reasons_told("Queue", "emails"), "an event")


def test_a_queue_with_other_arguments_is_reported_and_left_alone(ready_broker):
    app = ready_broker
    app.queue("emails", maxLength=10)
    app.wait_ready("queue", "emails")
    app.queue("emails", maxLength=20)
    told = app.wait_reason("queue", "emails", "ImmutableArguments")
    assert "x-max-length" in told["message"]
    assert app.condition("queue", "emails", "Stalled")["status"] == "True"
    assert app.broker_queue(f"{app.namespace}:emails")["arguments"]["x-max-length"] == 10


def test_a_queue_without_its_broker_waits_for_it(app):
    app.queue("emails")
    app.wait_reason("queue", "emails", "BrokerMissing")
    app.secret()
    app.broker()
    app.wait_ready("queue", "emails")


def test_another_namespaces_broker_is_not_allowed(ready_broker, apiserver):
    app = ready_broker
    other = apiserver.new_namespace()
    try:
        spec = {"brokerRef": {"name": "main", "namespace": app.namespace}}
        metadata = {"name": "emails", "namespace": other}
        apiserver.apply(
            {"apiVersion": "lunaq.dev/v1alpha1", "kind": "Queue", "metadata": metadata, "spec": spec}
        )

        def reason():
            found = apiserver.get("queue", "emails", "-n", other).get("status", {}).get("conditions", [])
            return next((one["reason"] for one in found if one["type"] == "Ready"), None)

        wait_for(lambda: reason() == "NotAllowed", "the Queue to be refused")
    finally:
        apiserver.delete_namespace(other)
    assert app.broker_names() == set()


def test_of_two_queues_that_claim_one_name_the_older_owns_it(ready_broker):
    app = ready_broker
    app.queue("first", queueName="shared")
    app.wait_ready("queue", "first")
    time.sleep(1.1)  # creation times are told to the second, and equal ones are decided by uid
    app.queue("second", queueName="shared", retry={"delays": ["7s"]})
    app.queue("third", queueName="shared.dead")
    app.wait_reason("queue", "second", "Conflict")
    app.wait_reason("queue", "third", "Conflict")
    assert "shared.retry.7000" not in app.broker_names()
    # Third claims what second would declare, and may be as old: it goes first.
    app.kubectl("delete", "queue", "third")
    app.kubectl("delete", "queue", "first")
    app.wait_ready("queue", "second")
    assert "shared.retry.7000" in app.broker_names()


def test_an_observed_queue_is_only_looked_at(ready_broker):
    app = ready_broker
    app.queue("theirs", queueName="theirs", managementPolicy="Observe")
    app.wait_reason("queue", "theirs", "QueueMissing")
    app.rabbitmq.api("PUT", f"/queues/{app.vhost}/theirs", {"durable": True})
    assert "Observe" in app.wait_ready("queue", "theirs")["message"]
    assert app.broker_names() == {"theirs"}


def test_dead_letters_may_go_to_another_queue(ready_broker):
    app = ready_broker
    app.queue("emails", deadLetter={"queueRef": {"name": "graveyard"}})
    app.wait_reason("queue", "emails", "QueueMissing")
    app.queue("graveyard")
    app.wait_ready("queue", "emails")
    arguments = app.broker_queue(f"{app.namespace}:emails")["arguments"]
    assert arguments["x-dead-letter-routing-key"] == f"{app.namespace}:graveyard"
    assert f"{app.namespace}:emails.dead" not in app.broker_names()


def test_retain_keeps_the_brokers_queue_and_takes_no_finalizer(ready_broker):
    app = ready_broker
    app.queue("emails")
    app.wait_ready("queue", "emails")
    before = app.broker_names()
    assert not app.get("queue", "emails")["metadata"].get("finalizers")
    app.kubectl("delete", "queue", "emails", "--timeout=30s")
    assert app.broker_names() == before


def test_delete_removes_the_whole_topology(ready_broker):
    app = ready_broker
    app.queue("emails", deletionPolicy="Delete")
    app.wait_ready("queue", "emails")
    assert app.get("queue", "emails")["metadata"]["finalizers"] == ["lunaq.dev/cleanup"]
    app.kubectl("delete", "queue", "emails", "--timeout=30s")
    assert app.broker_names() == set()
    assert not {name for name in app.broker_names("exchanges") if name.startswith(app.namespace)}


def test_delete_refuses_a_queue_with_messages_until_they_may_go(ready_broker):
    app = ready_broker
    app.queue("emails", deletionPolicy="Delete")
    app.wait_ready("queue", "emails")
    app.publish(f"{app.namespace}:emails.retry.60000")
    app.kubectl("delete", "queue", "emails", "--wait=false")
    refused = app.wait_reason("queue", "emails", "QueueNotEmpty")
    assert "emails.retry.60000 holds 1 messages" in refused["message"]
    assert f"{app.namespace}:emails.x" in app.broker_names("exchanges")
    app.kubectl("annotate", "queue", "emails", "lunaq.dev/delete-messages=true")
    wait_for(lambda: app.get("queue", "emails") is None, "the Queue to go")
    assert app.broker_names() == set()


def test_delete_gives_up_on_a_queue_with_messages_and_keeps_it(ready_broker):
    app = ready_broker
    app.queue("emails", deletionPolicy="Delete")
    app.wait_ready("queue", "emails")
    app.publish(f"{app.namespace}:emails")
    app.kubectl("delete", "queue", "emails", "--timeout=60s")
    assert app.broker_queue(f"{app.namespace}:emails") is not None
    assert "TopologyKept" in app.reasons_told("Queue", "emails")


def test_a_namespace_goes_although_its_broker_is_gone(ready_broker):
    """Also with a Queue that has a finalizer, and whatever the namespace controller deletes first."""
    app = ready_broker
    app.queue("emails", deletionPolicy="Delete")
    app.queue("orders", deletionPolicy="Delete")
    app.wait_ready("queue", "emails")
    app.wait_ready("queue", "orders")
    app.rabbitmq.delete_vhost(app.vhost)
    done = app.cluster.kubectl("delete", "namespace", app.namespace, "--timeout=60s", check=False)
    assert done.returncode == 0, done.stderr


def test_a_queue_goes_although_broker_and_secret_went_first(ready_broker):
    app = ready_broker
    app.queue("emails", deletionPolicy="Delete")
    app.wait_ready("queue", "emails")
    app.kubectl("delete", "secret", "rabbit")
    app.kubectl("delete", "broker", "main")
    done = app.kubectl("delete", "queue", "emails", "--timeout=60s", check=False)
    assert done.returncode == 0, done.stderr
    assert "TopologyKept" in app.reasons_told("Queue", "emails")
