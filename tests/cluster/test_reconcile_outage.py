"""A broker that goes away: what is told, what recovers, and what is let go."""

import pytest
from operators import App

pytestmark = pytest.mark.usefixtures("operator")


@pytest.fixture
def app(apiserver, namespace, restartable_rabbitmq):
    vhost = restartable_rabbitmq.new_vhost()
    found = App(apiserver, namespace, restartable_rabbitmq, vhost)
    found.secret()
    found.broker()
    found.queue("emails", deletionPolicy="Delete")
    found.wait_ready("queue", "emails")
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
