"""Makes the operator's AMQP connections from what a Broker says; used by `main` for the pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lunaq_operator import names
from lunaq_runtime import tls
from lunaq_runtime.brokers.amqp import AmqpBroker
from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.entries.model import Tls
from lunaq_runtime.entries.parse import EntriesError

if TYPE_CHECKING:
    import ssl

    from lunaq_operator.reconcile.pool import Target
    from lunaq_runtime.brokers.base import Broker


def make_broker(target: Target) -> Broker:
    """Build a connection, not yet connected; BrokerError where a certificate or key cannot be read."""
    uri = target.uri
    if target.certificate:
        uri += ("&" if "?" in uri else "?") + "auth_mechanism=external"
    context = tls_context(target) if uri.startswith("amqps:") else None
    try:
        return AmqpBroker(
            uri,
            credentials=lambda: (target.username, target.password),
            connection_name=names.FIELD_MANAGER,
            tls=context,
        )
    except ValueError as error:
        raise BrokerError("connection", f"spec.uri: {error}") from error


def tls_context(target: Target) -> ssl.SSLContext:
    """Build the TLS settings of a Broker: its CA or the system's, its client certificate, its name."""
    try:
        return tls.context(
            Tls(
                server_name=target.server_name,
                ca=target.ca.decode(),
                cert=target.certificate.decode(),
                key=target.private_key.decode(),
            )
        )
    except (EntriesError, UnicodeDecodeError) as error:
        raise BrokerError("connection", f"spec.tls: {error}") from error
