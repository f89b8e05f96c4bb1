"""TLS contexts from the PEM texts and files of an entries document; used by `serve` and the operator."""

from __future__ import annotations

import os
import ssl
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.entries.parse import EntriesError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lunaq_runtime.entries.model import Tls


def context(tls: Tls) -> ssl.SSLContext:
    """Build a client's context, TLS 1.2 or newer; EntriesError names the text that cannot be read."""
    made = _Context(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.server_name = tls.server_name
    if tls.insecure_skip_verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    elif tls.ca:
        _load("ca", lambda: made.load_verify_locations(cadata=tls.ca))
    else:
        made.load_default_certs()
    if tls.cert:
        _load("cert and key", lambda: _load_cert_chain(made, tls.cert, tls.key))
    return made


def at_connect(tls: Tls) -> ssl.SSLContext | Callable[[], ssl.SSLContext]:
    """Give what a connection takes: a context, or where files are named, what makes one of them anew.

    EntriesError at once where a text cannot be read; BrokerError at the connect where a file cannot.
    """
    if not (tls.ca_file or tls.cert_file):
        return context(tls)

    def read() -> ssl.SSLContext:
        try:
            return context(_with_files(tls))
        except EntriesError as error:
            raise BrokerError("connection", str(error)) from None

    return read


def _with_files(tls: Tls) -> Tls:
    """Fill the texts from the files."""
    return replace(
        tls,
        ca=_text("ca_file", tls.ca_file, tls.ca),
        cert=_text("cert_file", tls.cert_file, tls.cert),
        key=_text("key_file", tls.key_file, tls.key),
    )


def _text(field: str, path: str, otherwise: str) -> str:
    if not path:
        return otherwise
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError as error:
        raise EntriesError([f"tls.{field}: {path} cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise EntriesError([f"tls.{field}: {path} is not PEM text"]) from None


class _Context(ssl.SSLContext):
    """A context that asks for `server_name`, whatever host it connects to."""

    server_name = ""

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,  # noqa: FBT001, FBT002 - overrides ssl's
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        name = self.server_name or server_hostname
        return super().wrap_bio(incoming, outgoing, server_side, name, session)


def _load(what: str, load: Callable[[], None]) -> None:
    try:
        load()
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "not PEM"
        raise EntriesError([f"tls: {what} cannot be read ({reason}): give PEM text"]) from None


def _load_cert_chain(made: ssl.SSLContext, cert: str, key: str) -> None:
    """Load from a file, as ssl insists; one in memory, where a pod's file system is read-only."""
    text = f"{cert}\n{key}\n".encode()
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("lunaq-tls"), "wb") as file:
            file.write(text)
            file.flush()
            made.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(text)
        file.flush()
        made.load_cert_chain(file.name)
