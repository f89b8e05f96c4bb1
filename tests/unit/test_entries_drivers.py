"""An amqp driver's settings end up in its URL and its TLS, and no error repeats a credential."""

from __future__ import annotations

from typing import Any

import pytest

from lunaq_runtime.entries.model import Driver, Tls
from lunaq_runtime.entries.parse import EntriesError, parse
from lunaq_runtime.ids import Id

KEYS = {"cert": "CERT", "key": "KEY"}


def driver(environ: dict[str, str] | None = None, **fields: Any) -> Driver:
    entry = {"name": "broker", "kind": "queue.driver.amqp", **fields}
    return parse({"entries": [entry]}, environ=environ).drivers[Id("app", "broker")]


def test_a_driver_without_settings_has_the_contracts_defaults() -> None:
    assert driver() == Driver(Id("app", "broker"), "amqp", url="amqp://guest:guest@localhost:5672/")


def test_all_settings_reach_the_model() -> None:
    assert driver(
        url="amqps://host/a",
        connection_name="me",
        heartbeat="10s",
        connection_timeout="2.5s",
        reconnect_delay="100ms",
        reconnect_max_delay="1m",
    ) == Driver(
        Id("app", "broker"),
        "amqp",
        url="amqps://host/a",
        connection_name="me",
        heartbeat=10.0,
        connection_timeout=2.5,
        reconnect_delay=0.1,
        reconnect_max_delay=60.0,
    )


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({"url": "amqp://u:p@h:1/a", "vhost": "b/c"}, "amqp://u:p@h:1/b%2Fc"),
        ({"url": "amqp://h", "vhost": "/"}, "amqp://h/%2F"),
        ({"url": "amqp://h/a", "tls": {"enabled": True}}, "amqps://h/a"),
        (
            {"url": "amqp://h/a?heartbeat=5", "auth_mechanism": "EXTERNAL"},
            "amqp://h/a?heartbeat=5&auth_mechanism=external",
        ),
        (
            {"url": "amqp://h/a?auth_mechanism=plain", "auth_mechanism": "AMQPLAIN"},
            "amqp://h/a?auth_mechanism=amqplain",
        ),
    ],
)
def test_virtual_host_mechanism_and_tls_are_put_into_the_url(fields: dict[str, Any], url: str) -> None:
    assert driver(**fields).url == url


def test_tls_texts_come_inline_or_from_the_environment() -> None:
    assert driver(tls={"enabled": True, "ca": "CA", "server_name": "mq", **KEYS}).tls == Tls(
        server_name="mq", ca="CA", cert="CERT", key="KEY"
    )
    assert driver({"MQ_CA": "CA"}, tls={"enabled": True, "ca_env": "MQ_CA"}).tls == Tls(ca="CA")
    assert driver(url="amqps://h", tls={"ca": "CA"}).tls == Tls(ca="CA")
    assert driver(tls={"enabled": True}).tls == Tls()
    assert driver().tls is None


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"url": "http://u:secret@h"}, "url: is no AMQP URI: write amqp://host:5672/vhost"),
        ({"url": "amqp://u:secret@h:port"}, "url: is no AMQP URI"),
        ({"url": "amqp://[u:secret@h"}, "url: is no AMQP URI"),
        ({"auth_mechanism": "DIGEST"}, "auth_mechanism: 'DIGEST' is not one of PLAIN, EXTERNAL, AMQPLAIN"),
        ({"heartbeat": 10}, "heartbeat: 10 has no unit"),
        ({"reconnect_delay": "1m"}, "reconnect_delay: is longer than reconnect_max_delay"),
        ({"tls": {"cert": "secret"}}, "tls: cert and key only go together"),
        ({"tls": {"ca": "secret", "ca_env": "A"}}, "tls.ca_env: cannot be given beside tls.ca"),
        ({"tls": {"ca_env": "ABSENT"}}, "tls.ca_env: the environment has no variable ABSENT: set it"),
    ],
)
def test_a_driver_that_cannot_be_is_refused_without_its_secrets(fields: dict[str, Any], error: str) -> None:
    with pytest.raises(EntriesError) as caught:
        driver(**fields)
    (found,) = caught.value.errors
    assert found.startswith("entries[0] (queue.driver.amqp app:broker) ")
    assert error in found
    assert "secret" not in found


def test_a_drivers_secrets_are_not_in_its_text() -> None:
    text = repr(driver(url="amqp://u:secret@h", tls={"enabled": True, "cert": "C", "key": "secret"}))
    assert "secret" not in text


def test_accepting_any_certificate_is_warned_about() -> None:
    entry = {"name": "b", "kind": "queue.driver.amqp", "tls": {"enabled": True, "insecure_skip_verify": True}}
    assert "any certificate is accepted" in parse({"entries": [entry]}).warnings[0]


def test_files_of_tls_reach_the_model_unread() -> None:
    tls = {"ca_file": "/no/ca.crt", "cert_file": "/no/tls.crt", "key_file": "/no/tls.key"}
    assert driver(url="amqps://h", tls=tls).tls == Tls(**tls)


@pytest.mark.parametrize(
    ("tls", "told"),
    [
        ({"ca": "PEM", "ca_file": "/ca.crt"}, r"tls\.ca_file: cannot be given beside tls\.ca: remove one"),
        ({"cert_file": "/tls.crt"}, "cert_file and key_file only go together"),
        ({"key_file": "/tls.key"}, "cert_file and key_file only go together"),
    ],
)
def test_files_that_do_not_go_together_are_refused(tls: dict[str, str], told: str) -> None:
    with pytest.raises(EntriesError, match=told):
        driver(url="amqps://h", tls=tls)
