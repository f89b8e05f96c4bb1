"""A broker user per Consumer: what it may do, and that it stays so."""

import re

import aiormq
import pytest

from harness.waiting import eventually

pytestmark = pytest.mark.usefixtures("operator")

READ = r"^(?:app:emails)\z"


@pytest.fixture
def running(app):
    """A Consumer with a user of its own that may consume from emails and publish to sent."""
    app.secret()
    app.own_users()
    app.queue("emails")
    app.queue("sent")
    app.allow_consuming()
    app.allow_publishing("sent")
    app.consumer()
    app.wait_reason("consumer", "worker", "Progressing")
    return app


def the_user(app) -> str:
    (name,) = app.users()
    return name


async def connect(app, username=None, password=None):
    if username is None:
        username, password = app.credentials()
    return await aiormq.connect(app.rabbitmq.uri(app.vhost, username, password))


def closed(connection) -> bool:
    return connection.closing.done() or connection.is_closed


def test_a_consumer_gets_a_user_that_may_do_what_its_policy_says(running):
    namespace = running.namespace
    assert running.users() == {
        the_user(running): (
            "^$",
            rf"^(?:{namespace}:(?:emails\.retry|sent\.x))\z",
            rf"^(?:{namespace}:emails)\z",
        )
    }
    assert running.credentials()[0] == the_user(running)
    status = running.get("consumer", "worker")["status"]
    assert status["brokerUser"] == the_user(running)
    assert status["broker"] == f"{namespace}/main"
    assert running.rabbitmq.api("GET", f"/users/{the_user(running)}")["tags"] == ["lunaq"]


def test_pods_mount_the_consumers_own_secret_and_no_other(running):
    spec = running.get("deployment", "worker")["spec"]["template"]["spec"]
    assert [volume["secret"]["secretName"] for volume in spec["volumes"] if "secret" in volume] == [
        "worker.broker"
    ]
    owner = running.get("secret", "worker.broker")["metadata"]["ownerReferences"][0]
    assert (owner["kind"], owner["name"], owner["controller"]) == ("Consumer", "worker", True)


async def test_more_rights_leave_the_connection_alone_and_fewer_close_it(running):
    connection = await connect(running)
    running.role("publish", verbs=("publish",), names=("sent", "emails"))
    await eventually_writes(running, "emails.x")
    assert not closed(connection)
    running.role("publish", verbs=("publish",), names=("sent",))
    await eventually(lambda: _is(closed(connection)), "the connection to be closed")
    assert "emails\\.x" not in running.users()[the_user(running)][1]
    again = await connect(running)
    await again.close()


async def eventually_writes(app, name):
    await eventually(
        lambda: _is(re.escape(name) in app.users()[the_user(app)][1]), f"the right to write to {name}"
    )


async def _is(value):
    return value
