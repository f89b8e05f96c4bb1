"""A connection's TLS is what the document says, proven by handshakes."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING

import pytest
import uvloop

from harness.pki import Pki
from lunaq_runtime import tls
from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.entries.model import Tls
from lunaq_runtime.entries.parse import EntriesError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture(name="pki", scope="module")
def _pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    pki = Pki(tmp_path_factory.mktemp("pki"))
    pki.server("broker", ["mq.example"], [])
    pki.client("client", "worker")
    return pki


def text(pki: Pki, name: str) -> str:
    return (pki.folder / name).read_text()


def shake_hands(pki: Pki, settings: Tls, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> str | None:
    """Connect to 127.0.0.1 and return the common name the server saw of us."""
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=pki.path("ca.crt"))
    server_side.load_cert_chain(pki.path("broker.crt"), pki.path("broker.key"))
    server_side.verify_mode = ssl.CERT_OPTIONAL
    seen: list[str | None] = []

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            certificate = writer.get_extra_info("peercert") or {}
            names = [
                value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"
            ]
            seen.append(names[0] if names else None)
            writer.write(b"x")
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    async def connect() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_side)
        async with server:
            port = server.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls.context(settings))
            assert await reader.read(1) == b"x"
            writer.close()
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                await writer.wait_closed()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(connect())
    return seen[0]


@pytest.mark.parametrize("new_loop", LOOPS)
def test_the_brokers_certificate_must_have_the_server_name_whatever_the_host(
    pki: Pki, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    authority = text(pki, "ca.crt")
    assert shake_hands(pki, Tls(ca=authority, server_name="mq.example"), new_loop) is None
    for settings in (Tls(ca=authority), Tls(ca=authority, server_name="other.example")):
        with pytest.raises(ssl.SSLCertVerificationError):
            shake_hands(pki, settings, new_loop)


def test_a_certificate_of_another_authority_is_refused(pki: Pki, tmp_path: Path) -> None:
    other = Pki(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(pki, Tls(ca=text(other, "ca.crt"), server_name="mq.example"), LOOPS[0])


def test_skipping_the_check_accepts_any_certificate(pki: Pki) -> None:
    assert shake_hands(pki, Tls(insecure_skip_verify=True), LOOPS[0]) is None


def test_a_client_certificate_is_shown_to_the_broker(pki: Pki) -> None:
    settings = Tls(
        ca=text(pki, "ca.crt"),
        server_name="mq.example",
        cert=text(pki, "client.crt"),
        key=text(pki, "client.key"),
    )
    assert shake_hands(pki, settings, LOOPS[0]) == "worker"


def test_versions_before_1_2_are_not_spoken() -> None:
    assert tls.context(Tls()).minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("settings", "what"),
    [(Tls(ca="secret"), "ca"), (Tls(cert="secret", key="secret"), "cert and key")],
)
def test_text_that_is_not_pem_is_named_and_not_repeated(settings: Tls, what: str) -> None:
    with pytest.raises(EntriesError) as caught:
        tls.context(settings)
    assert str(caught.value).startswith(f"tls: {what} cannot be read")
    assert "secret" not in str(caught.value)


def test_files_are_read_anew_at_each_connect(pki: Pki, tmp_path: Path) -> None:
    file = tmp_path / "ca.crt"
    make = tls.at_connect(Tls(ca_file=str(file)))
    assert callable(make)
    with pytest.raises(BrokerError, match=r"tls\.ca_file: .*ca\.crt cannot be read: No such file"):
        make()
    file.write_text("rubbish")
    with pytest.raises(BrokerError, match="ca cannot be read"):
        make()
    file.write_text(text(pki, "ca.crt"))
    assert len(make().get_ca_certs()) == 1


def test_texts_are_read_once(pki: Pki) -> None:
    made = tls.at_connect(Tls(ca=text(pki, "ca.crt")))
    assert isinstance(made, ssl.SSLContext)
