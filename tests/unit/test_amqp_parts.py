"""The pure parts under the AMQP broker: addresses, waits, errors, headers."""

from __future__ import annotations

import itertools

import pytest
from aiormq import exceptions as amqp

from lunaq_runtime.brokers.amqp.backoff import full_jitter
from lunaq_runtime.brokers.amqp.endpoint import Endpoint
from lunaq_runtime.brokers.amqp.errors import broker_error
from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.brokers.wire import check
from lunaq_runtime.message import Properties


@pytest.mark.parametrize(
    ("uri", "host", "port", "vhost"),
    [
        ("amqp://h", "h", 5672, "/"),
        ("amqp://h/", "h", 5672, "/"),
        ("amqp://h/%2f", "h", 5672, "/"),
        ("amqp://h/%2F", "h", 5672, "/"),
        ("amqps://h", "h", 5671, "/"),
        ("amqp://h:1234/app", "h", 1234, "app"),
        ("amqp://h/a%2Fb%25", "h", 5672, "a/b%"),
        ("amqp://[::1]:5673/v", "::1", 5673, "v"),
        ("amqp:///v", "localhost", 5672, "v"),
    ],
)
def test_an_address_says_where_to_connect(uri: str, host: str, port: int, vhost: str):
    endpoint = Endpoint.parse(uri)
    assert (endpoint.host, endpoint.port, endpoint.vhost) == (host, port, vhost)


def test_credentials_are_decoded_and_never_shown():
    endpoint = Endpoint.parse("amqp://us%40er:p%2Fa%3Ass@h/v")
    assert (endpoint.username, endpoint.password) == ("us@er", "p/a:ss")
    assert "ss" not in str(endpoint)
    assert str(endpoint) == "amqp://h:5672 virtual host 'v'"
    url = endpoint.url(endpoint.username, endpoint.password, 10, "pod-1")
    assert (url.user, url.password, url.query["name"]) == ("us@er", "p/a:ss", "pod-1")


def test_query_parameters_come_in_the_units_of_the_specification():
    endpoint = Endpoint.parse("amqp://h/v?heartbeat=7&connection_timeout=1500&auth_mechanism=EXTERNAL")
    assert (endpoint.heartbeat, endpoint.connection_timeout) == (7, 1.5)
    assert endpoint.auth_mechanism == "external"


@pytest.mark.parametrize(
    "uri",
    [
        "http://u:secret@h",
        "h:5672",
        "amqp://u:secret@h:port/v",
        "amqp://u:secret@h/a/b",
        "amqp://u:secret@h?heartbeat=often",
        "amqp://u:secret@h?heartbeat=-1",
        "amqp://u:secret@h?connection_timeout=nan",
    ],
)
def test_an_address_that_is_wrong_is_refused_without_repeating_its_password(uri: str):
    with pytest.raises(ValueError, match="url: ") as error:
        Endpoint.parse(uri)
    assert "secret" not in f"{error.value} {error.value.__cause__}"


def test_waits_double_up_to_the_most_and_jitter_over_the_whole_range():
    highest = full_jitter(1, 30, lambda _low, high: high)
    assert list(itertools.islice(highest, 7)) == [1, 2, 4, 8, 16, 30, 30]
    lowest = full_jitter(1, 30, lambda low, _high: low)
    assert set(itertools.islice(lowest, 100)) == {0}


def test_the_broker_s_refusals_have_the_reasons_of_the_contract():
    drift = "PRECONDITION_FAILED - inequivalent arg 'x' for queue 'q': received '1' but current is '2'"
    cases = {
        amqp.ChannelNotFoundEntity("NOT_FOUND - no queue 'q'"): "queue_not_found",
        amqp.ChannelAccessRefused("ACCESS_REFUSED - no"): "access_refused",
        amqp.ChannelLockedResource("RESOURCE_LOCKED - no"): "access_refused",
        amqp.ChannelPreconditionFailed(drift): "immutable_arguments",
        amqp.ChannelPreconditionFailed("PRECONDITION_FAILED - invalid arg"): "invalid_arguments",
        amqp.ProbableAuthenticationError("ACCESS_REFUSED"): "access_refused",
        amqp.ConnectionClosed(320, "CONNECTION_FORCED"): "connection",
        ConnectionRefusedError(111, "refused"): "connection",
        TimeoutError(): "timeout",
        KeyError("odd"): "connection",
    }
    for error, reason in cases.items():
        assert broker_error("cannot do it", error).reason == reason, error
    both = str(broker_error("cannot declare", amqp.ChannelPreconditionFailed(drift)))
    assert both == "cannot declare: " + drift.removeprefix("PRECONDITION_FAILED - ")


@pytest.mark.parametrize(
    ("properties", "named"),
    [
        (Properties(headers={"n" * 256: 1}), "255 bytes"),
        (Properties(headers={"n": 2**63}), "64 bits"),
        (Properties(headers={"n": {1, 2}}), "set"),
        (Properties(headers={"n": ["\ud800"]}), "headers"),
        (Properties(expiration="1s"), "expiration"),
        (Properties(priority=-1), "priority"),
        (Properties(correlation_id="é" * 128), "correlation_id"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(properties: Properties, named: str):
    with pytest.raises(BrokerError, match=named) as error:
        check(properties)
    assert error.value.reason == "encode_failed"
