"""TLS contexts from the PEM texts of an entries document; used by `runner`."""

from __future__ import annotations

import os
import ssl
import tempfile
from typing import TYPE_CHECKING

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
