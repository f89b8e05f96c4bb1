"""Makes the operator's AMQP connections from what a Broker says; used by `main` for the pool."""

from __future__ import annotations

import ssl
import tempfile
from typing import TYPE_CHECKING, Any

from lunaq_operator import names
from lunaq_runtime.brokers.amqp import AmqpBroker
from lunaq_runtime.brokers.base import BrokerError

if TYPE_CHECKING:
    from lunaq_operator.reconcile.pool import Target
    from lunaq_runtime.brokers.base import Broker


def make_broker(target: Target) -> Broker:
    """Build a connection, not yet connected; BrokerError where certificate or key cannot be read."""
    uri = target.uri
    if target.certificate:
        uri += ("&" if "?" in uri else "?") + "auth_mechanism=external"
    return AmqpBroker(
        uri,
        credentials=lambda: (target.username, target.password),
        connection_name=names.FIELD_MANAGER,
        tls=tls_context(target) if uri.startswith("amqps:") else None,
    )


def tls_context(target: Target) -> ssl.SSLContext:
    """Build the TLS settings of a Broker: its CA or the system's, its client certificate, its name."""
    context = _NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.name = target.server_name
    try:
        if target.ca:
            context.load_verify_locations(cadata=target.ca.decode())
        else:
            context.load_default_certs()
        if target.certificate:
            _load_pair(context, target)
    except (ssl.SSLError, ValueError) as error:
        raise BrokerError("connection", f"spec.tls: a certificate or key cannot be used: {error}") from error
    return context


class _NamedContext(ssl.SSLContext):
    """Verifies the server under another name than the one it is reached by, where one is set."""

    name = ""

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,  # noqa: FBT001, FBT002 - the signature is the library's
        server_hostname: Any = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return super().wrap_bio(incoming, outgoing, server_side, self.name or server_hostname, session)


def _load_pair(context: ssl.SSLContext, target: Target) -> None:
    # OpenSSL reads a chain from files only.
    with tempfile.NamedTemporaryFile() as chain, tempfile.NamedTemporaryFile() as key:
        chain.write(target.certificate)
        key.write(target.private_key)
        chain.flush()
        key.flush()
        context.load_cert_chain(chain.name, key.name)
