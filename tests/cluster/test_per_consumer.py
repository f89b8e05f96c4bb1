"""A broker user per Consumer: what it may do, and that it stays so."""

import re

import aiormq
import pytest

from harness.waiting import eventually, wait_for

pytestmark = pytest.mark.usefixtures("operator")

READ = r"^(?:app:emails)\z"


@pytest.fixture
def running(app):
    """A Consumer with a user of its own that may consume from emails and publish to sent."""
    app.start_with_own_user()
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


async def test_a_user_that_somebody_deleted_changed_or_widened_is_repaired(running):
    username, password = running.credentials()
    running.rabbitmq.api("DELETE", f"/users/{username}")
    await eventually(lambda: _is(username in running.users()), "the user to be there again")
    await (await connect(running, username, password)).close()

    running.rabbitmq.api("PUT", f"/users/{username}", {"password": "guessed", "tags": "administrator"})
    await eventually(lambda: _is(_tags(running, username) == ["lunaq"]), "the tags to be taken")
    await (await connect(running, username, password)).close()
    with pytest.raises(aiormq.exceptions.ProbableAuthenticationError):
        await connect(running, username, "guessed")

    vhost = running.rabbitmq.new_vhost()
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    before = running.users()
    for one in (running.vhost, vhost):
        running.rabbitmq.api("PUT", f"/permissions/{one}/{username}", everything)
    connection = await connect(running)
    await eventually(lambda: _is(running.users() == before), "the permissions to be as they were")
    await eventually(lambda: _is(closed(connection)), "the connection to be closed")
    permissions = running.rabbitmq.api("GET", f"/users/{username}/permissions")
    assert [one["vhost"] for one in permissions] == [running.vhost]
    running.rabbitmq.delete_vhost(vhost)
    assert "Healed" in running.reasons_told("Consumer", "worker")


async def test_a_rotation_leaves_the_old_user_to_who_is_connected_and_then_deletes_it(running):
    old = running.credentials()
    connection = await connect(running)
    running.kubectl("annotate", "consumer", "worker", "lunaq.dev/rotate=now")
    new = await eventually(lambda: _is((now := running.credentials()) != old and now), "the Secret to change")
    assert new[0] != old[0]
    successor = await connect(running)
    settled = running.rabbitmq.api("GET", "/overview")["rabbitmq_version"]
    assert settled
    await (await connect(running, *old)).close()
    assert not closed(connection)
    assert set(running.users()) == {old[0], new[0]}
    await connection.close()
    await eventually(lambda: _is(set(running.users()) == {new[0]}), "the old user to be deleted")
    assert not closed(successor)
    await successor.close()
    await eventually(
        lambda: _is("CredentialsRotated" in running.reasons_told("Consumer", "worker")), "an event"
    )


async def test_a_secret_that_was_deleted_is_written_anew_for_another_user(running):
    old = running.credentials()
    running.kubectl("delete", "secret", "worker.broker")
    new = await eventually(lambda: _is(running.credentials()), "a new Secret")
    assert new[0] != old[0]
    await (await connect(running)).close()
    await eventually(lambda: _is(set(running.users()) == {new[0]}), "the old user to be deleted")


async def test_a_consumer_that_is_deleted_takes_its_user_along(running):
    assert running.get("consumer", "worker")["metadata"]["finalizers"] == ["lunaq.dev/cleanup"]
    connection = await connect(running)
    running.kubectl("delete", "consumer", "worker", "--wait=false")
    await eventually(lambda: _is(running.get("deployment", "worker") is None), "the pods to be ended")
    assert not closed(connection)
    assert running.users()
    await connection.close()
    await eventually(lambda: _is(running.get("consumer", "worker") is None), "the Consumer to go")
    assert running.users() == {}


def test_a_broker_that_is_deleted_takes_all_its_users_along(running):
    assert running.users()
    running.kubectl("delete", "broker", "main", "--timeout=40s")
    assert running.users() == {}
    running.wait_reason("consumer", "worker", "QueueNotReady")


def test_users_go_when_the_access_becomes_shared(running):
    running.ours(
        "Broker",
        "main",
        {
            "uri": running.rabbitmq.bare_uri(running.vhost),
            "access": "Shared",
            "credentialsSecretRef": {"name": "rabbit"},
        },
    )
    running.wait_reason("consumer", "worker", "Progressing")
    wait_for(lambda: running.users() == {}, "the user to be deleted")
    wait_for(lambda: not running.get("broker", "main")["metadata"].get("finalizers"), "the Broker to be free")
    wait_for(
        lambda: not running.get("consumer", "worker")["metadata"].get("finalizers"), "the Consumer to be free"
    )
    assert running.get("secret", "worker.broker") is None


def _tags(app, username):
    return app.rabbitmq.api("GET", f"/users/{username}")["tags"]
