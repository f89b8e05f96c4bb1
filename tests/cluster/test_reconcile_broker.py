"""Brokers, reconciled by a running operator."""

import pytest

from harness.waiting import wait_for

pytestmark = pytest.mark.usefixtures("operator")


def test_a_broker_becomes_ready_and_tells_what_the_server_is(app):
    app.secret()
    app.broker()
    app.wait_ready("broker", "main")
    status = app.get("broker", "main")["status"]
    assert status["serverProduct"] == "RabbitMQ"
    assert status["serverVersion"]
    assert status["access"] == "Shared"
    assert app.condition("broker", "main", "Stalled")["status"] == "False"


def test_a_secret_without_the_brokers_label_is_refused_and_taken_once_labelled(app):
    app.secret(labels={})
    app.broker()
    refused = app.wait_reason("broker", "main", "SecretNotLabelled")
    assert "kubectl label secret" in refused["message"]
    assert app.condition("broker", "main", "Stalled")["status"] == "True"
    app.kubectl("label", "secret", "rabbit", "lunaq.dev/broker=main")
    app.wait_ready("broker", "main")


def test_a_missing_secret_is_told_and_noticed_once_it_is_there(app):
    app.broker()
    assert "rabbit" in app.wait_reason("broker", "main", "SecretMissing")["message"]
    app.secret()
    app.wait_ready("broker", "main")


def test_wrong_credentials_are_told_and_a_rotated_secret_is_noticed(app):
    app.secret(password="wrong")
    app.broker()
    app.wait_reason("broker", "main", "AccessRefused")
    app.secret()
    app.wait_ready("broker", "main")


def test_an_unreachable_broker_is_told_without_stalling(app):
    app.secret()
    app.broker(uri="amqp://127.0.0.1:9")
    app.wait_reason("broker", "main", "BrokerUnreachable")
    assert app.condition("broker", "main", "Stalled")["status"] == "False"


def test_per_consumer_access_needs_a_management_api_that_answers(app):
    app.secret()
    app.broker(management={"uri": "http://127.0.0.1:9"})
    ready = app.wait_reason("broker", "main", "ManagementUnreachable")
    assert "127.0.0.1:9" in ready["message"]
    app.own_users()
    app.wait_ready("broker", "main")
    assert app.get("broker", "main")["status"]["access"] == "PerConsumer"


def test_a_transition_is_told_by_an_event(app):
    app.secret()
    app.broker()
    app.wait_ready("broker", "main")
    wait_for(lambda: "Available" in app.reasons_told("Broker", "main"), "an event about the Broker")
