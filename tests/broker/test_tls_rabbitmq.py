"""TLS and mutual TLS on a real RabbitMQ that demands a client certificate and takes it for a login."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any

import pytest

from harness.pki import Pki
from harness.processes import free_port
from harness.rabbitmq import RabbitMQ
from harness.waiting import eventually
from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.entries.parse import parse
from lunaq_runtime.serve import make_brokers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lunaq_runtime.brokers.base import Broker

HOST = "mq.example"
CONFIG = """\
listeners.ssl.1 = 127.0.0.1:{port}
ssl_options.cacertfile = {{folder}}/ca.crt
ssl_options.certfile = {{folder}}/broker.crt
ssl_options.keyfile = {{folder}}/broker.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
ssl_cert_login_from = common_name
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = EXTERNAL
"""


class TlsNode(RabbitMQ):
    """A node with a TLS listener, and the authority that signed everything."""

    def __init__(self, pki: Pki) -> None:
        self.pki = pki
        self.tls_port = free_port()
        files = {name: (pki.folder / name).read_bytes() for name in ("ca.crt", "broker.crt", "broker.key")}
        config = CONFIG.format(port=self.tls_port).replace("{{", "{").replace("}}", "}")
        super().__init__(config, plugins=["rabbitmq_auth_mechanism_ssl"], files=files)

    def present(self, name: str) -> None:
        """Answer new connections with another certificate."""
        for end in ("crt", "key"):
            (self._dir / f"broker.{end}").write_bytes((self.pki.folder / f"{name}.{end}").read_bytes())
        self.ctl("eval", "ssl:clear_pem_cache().")

    def new_user(self, name: str) -> None:
        """Let a user in who has no password: only a certificate logs it in."""
        self.api("PUT", f"/users/{name}", {"password_hash": "", "tags": ""})
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self.api("PUT", f"/permissions/%2F/{name}", everything)

    def users(self) -> set[str]:
        """Tell who is connected by TLS."""
        return {one["user"] for one in self.api("GET", "/connections") if one.get("ssl")}


@pytest.fixture(scope="module", name="node")
def _node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsNode]:
    pki = Pki(tmp_path_factory.mktemp("pki"))
    pki.server("broker", [HOST], [])
    pki.server("expired", [HOST], [], expired=True)
    pki.client("client", "worker")
    pki.client("other", "another")
    pki.client("late", "worker", expired=True)
    node = TlsNode(pki)
    try:
        node.start()
        for user in ("worker", "another"):
            node.new_user(user)
        yield node
    finally:
        node.stop()


def driver(node: TlsNode, *, client: str = "client", user: str = "", **tls: Any) -> Broker:
    """Make the broker of a document with these settings; the administrator logs in unless told otherwise."""
    login = user or f"{node.username}:{node.password}"
    files = {"ca_file": node.pki.path("ca.crt"), "server_name": HOST}
    if client:
        files |= {"cert_file": node.pki.path(f"{client}.crt"), "key_file": node.pki.path(f"{client}.key")}
    entry = {
        "id": "mq",
        "kind": "queue.driver.amqp",
        "url": f"amqps://{login}@127.0.0.1:{node.tls_port}/%2F"
        if user != "-"
        else f"amqps://127.0.0.1:{node.tls_port}/%2F",
        "auth_mechanism": "EXTERNAL" if user == "-" else "PLAIN",
        "reconnect_delay": "100ms",
        "tls": files | tls,
    }
    document = parse({"entries": [entry, {"id": "q", "kind": "queue.queue"}]})
    (broker,) = make_brokers(document).values()
    return broker


def external(node: TlsNode, **options: Any) -> Broker:
    """Make one that logs in by its certificate alone."""
    return driver(node, user="-", **options)


async def refused(broker: Broker) -> str:
    try:
        with pytest.raises(BrokerError) as error:
            await broker.connect()
    finally:
        await broker.close()
    return f"{error.value.reason}: {error.value}"


async def test_the_right_authority_and_a_password_let_us_in(node: TlsNode):
    broker = driver(node)
    await broker.connect()
    assert broker.connected
    await broker.close()


async def test_a_client_certificate_is_a_login_by_itself(node: TlsNode):
    broker = external(node)
    await broker.connect()

    async def known() -> bool:
        return "worker" in await asyncio.to_thread(node.users)

    await eventually(known, "the certificate's user to be connected")
    await broker.close()


async def test_another_authority_is_not_trusted(node: TlsNode, tmp_path: Path):
    Pki(tmp_path)
    text = await refused(driver(node, ca_file=str(tmp_path / "ca.crt")))
    assert text.startswith("connection: ")
    assert "certificate is not accepted" in text
    assert "self-signed" in text or "issuer" in text or "signature" in text


async def test_the_systems_authorities_do_not_know_ours(node: TlsNode):
    assert "certificate is not accepted" in await refused(driver(node, ca_file=""))


async def test_another_name_than_the_certificates_is_refused(node: TlsNode):
    text = await refused(driver(node, server_name="other.example"))
    assert "Hostname mismatch" in text
    assert "other.example" in text


async def test_an_expired_certificate_of_the_broker_is_refused(node: TlsNode):
    node.present("expired")
    try:
        assert "certificate has expired" in await refused(driver(node))
    finally:
        node.present("broker")
    broker = driver(node)
    await broker.connect()
    await broker.close()


async def test_no_client_certificate_is_told_with_what_to_do(node: TlsNode):
    assert "requires a client certificate" in await refused(driver(node, client=""))


async def test_an_expired_client_certificate_is_told(node: TlsNode):
    assert "client certificate" in await refused(external(node, client="late"))


async def test_a_client_certificate_of_another_authority_is_told(node: TlsNode, tmp_path: Path):
    stranger = Pki(tmp_path)
    stranger.client("client", "worker")
    files = {"cert_file": stranger.path("client.crt"), "key_file": stranger.path("client.key")}
    text = await refused(external(node, **files))
    assert "client certificate" in text


async def test_a_certificate_of_an_unknown_user_is_a_refused_login(node: TlsNode):
    node.pki.client("nobody", f"nobody-{secrets.token_hex(4)}")
    assert (await refused(external(node, client="nobody"))).startswith("access_refused: ")


async def test_a_missing_file_is_named(node: TlsNode, tmp_path: Path):
    text = await refused(driver(node, ca_file=str(tmp_path / "gone.crt")))
    assert f"tls.ca_file: {tmp_path}/gone.crt cannot be read: No such file" in text


async def test_tls_to_a_port_without_it_says_so(node: TlsNode):
    broker = driver(node)
    broker._endpoint = broker._endpoint.__class__.parse(f"amqps://127.0.0.1:{node.port}/")  # type: ignore[attr-defined]
    assert "TLS failed" in await refused(broker)


async def test_a_rotated_client_certificate_is_used_by_the_next_connection(node: TlsNode, tmp_path: Path):
    def mount(name: str) -> None:
        for end in ("crt", "key"):
            (tmp_path / f"tls.{end}").write_bytes((node.pki.folder / f"{name}.{end}").read_bytes())

    mount("client")
    broker = external(node, cert_file=str(tmp_path / "tls.crt"), key_file=str(tmp_path / "tls.key"))
    await broker.connect()

    async def only(user: str) -> bool:
        return await asyncio.to_thread(node.users) == {user}

    await eventually(lambda: only("worker"), "the first certificate's user to be connected")
    mount("other")
    assert broker.connected
    await asyncio.to_thread(node.ctl, "close_all_connections", "rotation")
    await eventually(lambda: only("another"), "the second certificate's user to be connected")
    await broker.close()
