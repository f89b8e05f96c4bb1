"""A broker that goes away: what is told, what recovers, and what is let go."""

import time

import pytest
from operators import App

from harness.waiting import wait_for

pytestmark = pytest.mark.usefixtures("operator")


@pytest.fixture
def app(apiserver, namespace, restartable_rabbitmq):
    vhost = restartable_rabbitmq.new_vhost()
    found = App(apiserver, namespace, restartable_rabbitmq, vhost)
    found.secret()
    found.own_users()
    found.queue("emails", deletionPolicy="Delete")
    found.allow_consuming()
    found.consumer()
    found.wait_ready("queue", "emails")
    wait_for(found.credentials, "the Consumer's user")
    return found


def test_an_outage_is_told_and_is_over_when_the_broker_is_back(app, restartable_rabbitmq):
    restartable_rabbitmq.shut_down()
    try:
        app.wait_reason("broker", "main", "BrokerUnreachable")
        app.wait_reason("queue", "emails", "BrokerNotReady")
    finally:
        restartable_rabbitmq.start()
    app.wait_ready("broker", "main", 120)
    app.wait_ready("queue", "emails")


def test_a_namespace_goes_although_its_broker_is_down(app, restartable_rabbitmq):
    restartable_rabbitmq.shut_down()
    try:
        done = app.cluster.kubectl("delete", "namespace", app.namespace, "--timeout=60s", check=False)
        assert done.returncode == 0, done.stderr
    finally:
        restartable_rabbitmq.start()


def test_a_consumer_goes_while_its_broker_is_down_and_its_user_goes_later(app, restartable_rabbitmq):
    restartable_rabbitmq.shut_down()
    try:
        begun = time.monotonic()
        app.kubectl("delete", "consumer", "worker", "--timeout=60s")
        assert time.monotonic() - begun < 60
        wait_for(lambda: "UserKept" in app.reasons_told("Consumer", "worker"), "an event about what stays")
    finally:
        restartable_rabbitmq.start()
    assert app.users()
    wait_for(lambda: app.users() == {}, "the user to be deleted", 120)
