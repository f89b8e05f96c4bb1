"""One Broker for several namespaces: consent, what each namespace can read, and consent that is withdrawn."""

import aiormq
import pytest
from operators import App

from harness.waiting import eventually, wait_for

pytestmark = pytest.mark.usefixtures("operator")


@pytest.fixture
def other(apiserver, app):
    """A second namespace, with a Queue on the first one's Broker and a Consumer of it."""
    name = apiserver.new_namespace()
    found = App(apiserver, name, app.rabbitmq, app.vhost)
    found.queue("orders", brokerRef={"name": "main", "namespace": app.namespace})
    found.allow_consuming()
    found.consumer(queue="orders")
    yield found
    apiserver.delete_namespace(name)


def selecting(team):
    return {"from": "Selector", "selector": {"matchLabels": {"team": team}}}


async def test_consent_by_label_is_given_withdrawn_and_given_again(app, other):
    app.secret()
    app.own_users(allowedNamespaces=selecting("blue"))
    assert "does not admit" in other.wait_reason("queue", "orders", "NotAllowed")["message"]
    assert app.users() == {}

    app.cluster.kubectl("label", "namespace", other.namespace, "team=blue")
    other.wait_ready("queue", "orders")
    username, password = await eventually(lambda: _is(other.credentials()), "a user")
    assert app.users()[username][2] == rf"^(?:{other.namespace}:orders)\z"
    # Its own credentials, and nothing of the Broker's, neither as a copy nor by reference.
    assert {one["metadata"]["name"] for one in other.list("secrets")} == {"worker.broker"}
    deployment = await eventually(lambda: _is(other.get("deployment", "worker")), "the Deployment")
    spec = deployment["spec"]["template"]["spec"]
    assert [one["secret"]["secretName"] for one in spec["volumes"] if "secret" in one] == ["worker.broker"]
    connection = await aiormq.connect(app.rabbitmq.uri(app.vhost, username, password))

    app.cluster.kubectl("label", "namespace", other.namespace, "team-")
    await eventually(lambda: _is(connection.closing.done()), "the connection to be closed")
    assert app.users() == {}
    assert "does not admit" in other.wait_reason("consumer", "worker", "QueueNotReady")["message"]
    assert "brokerUser" not in other.get("consumer", "worker")["status"]
    other.wait_reason("queue", "orders", "NotAllowed")
    assert f"{other.namespace}:orders" in app.broker_names()  # messages are not what was consented to

    app.cluster.kubectl("label", "namespace", other.namespace, "team=blue")
    await eventually(lambda: _is(username in app.users()), "the user to be back")
    again = await aiormq.connect(app.rabbitmq.uri(app.vhost, username, password))
    await again.close()


async def test_a_consumer_of_another_namespaces_queue_needs_consent_and_rbac(app, other):
    app.secret()
    app.own_users(allowedNamespaces={"from": "All"})
    app.queue("emails")
    app.wait_ready("queue", "emails")
    other.consumer("reader", queueRef={"name": "emails", "namespace": app.namespace})
    other.wait_reason("consumer", "reader", "NotAuthorized")
    name = (await eventually(lambda: _is(other.credentials("reader")), "a user"))[0]
    assert app.users()[name] == ("^$", "^$", "^$")

    app.role("consume")
    app.cluster.kubectl(
        "create", "rolebinding", "reader", "-n", app.namespace, "--role=consume",
        f"--serviceaccount={other.namespace}:reader",
    )  # fmt: skip
    read = rf"^(?:{app.namespace}:emails)\z"
    await eventually(lambda: _is(app.users()[name][2] == read), "the right to read")
    app.own_users(allowedNamespaces={"from": "Same"})
    await eventually(lambda: _is(name not in app.users()), "the user to be deleted")
    assert "does not admit" in other.wait_reason("consumer", "reader", "NotAllowed")["message"]


def test_a_namespace_goes_although_the_broker_is_in_another_and_its_user_with_it(app, other):
    app.secret()
    app.own_users(allowedNamespaces={"from": "All"})
    name = wait_for(other.credentials, "a user")[0]
    assert name in app.users()
    other.cluster.kubectl("delete", "namespace", other.namespace, "--timeout=60s")
    assert name not in app.users()


async def _is(value):
    return value
