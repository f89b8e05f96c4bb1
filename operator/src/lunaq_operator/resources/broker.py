"""The Broker resource: an AMQP 0-9-1 broker, and who may use it how."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urlsplit

from lunaq_operator import names
from lunaq_operator.resources.fields import Fields, SpecError
from lunaq_operator.resources.meta import LocalRef, Resource, read_local_ref, read_meta
from lunaq_runtime.ids import Id

if TYPE_CHECKING:
    from collections.abc import Mapping

_URI_QUERY = re.compile(r"((heartbeat=\d{1,5}|connection_timeout=[1-9]\d{0,6})(&|\Z))*\Z")

SHARED = "Shared"
PER_CONSUMER = "PerConsumer"


@dataclass(frozen=True, slots=True)
class Management:
    """RabbitMQ's management API."""

    uri: str


@dataclass(frozen=True, slots=True)
class CaSecretRef:
    """The Secret, and its key, with the certificate authorities to trust."""

    name: str
    key: str = "ca.crt"


@dataclass(frozen=True, slots=True)
class Tls:
    """How an amqps connection proves who is who."""

    ca_secret_ref: CaSecretRef | None = None
    client_certificate_secret_ref: LocalRef | None = None
    server_name: str = ""


@dataclass(frozen=True, slots=True)
class AllowedNamespaces:
    """Whose Queues and Consumers may refer to the Broker; `selector` is a label selector."""

    from_: str = "Same"
    selector: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Broker(Resource):
    """A Broker as its spec means it; `uri` carries no credentials."""

    uri: str
    credentials_secret_ref: LocalRef
    runtime_credentials_secret_ref: LocalRef | None = None
    tls: Tls | None = None
    management: Management | None = None
    access: str = ""
    allowed_namespaces: AllowedNamespaces = field(default_factory=AllowedNamespaces)

    @property
    def id(self) -> Id:
        """The ID of the Broker's entry, `<namespace>:<name>`."""
        return Id(self.namespace, self.name)

    @property
    def cluster_uri(self) -> str:
        """The URI that works from every namespace: a host of one label is a Service beside the Broker.

        The operator runs elsewhere, where DNS would look for that Service in the operator's namespace.
        """
        return _from_everywhere(self.uri, self.namespace)

    @property
    def management_uri(self) -> str:
        """The management API's URI that works from every namespace, empty where there is none."""
        return _from_everywhere(self.management.uri, self.namespace) if self.management else ""

    @property
    def vhost(self) -> str:
        """The virtual host that `uri` names; without one it is `/`, as for the AMQP connection."""
        path = urlsplit(self.uri).path
        return unquote(path[1:]) if path[1:] else "/"


def _from_everywhere(uri: str, namespace: str) -> str:
    address = urlsplit(uri).netloc
    host, colon, port = address.partition(":")
    if address.startswith("[") or "." in host or host == "localhost":
        return uri
    return uri.replace(f"://{address}", f"://{host}.{namespace}.svc{colon}{port}", 1)


def effective_access(broker: Broker) -> str:
    """Return how pods log in: as said, else `PerConsumer` where there is a management API."""
    if broker.access:
        return broker.access
    return PER_CONSUMER if broker.management is not None else SHARED


def parse_broker(obj: Mapping[str, Any], *, strict: bool = False) -> Broker:
    """Read a Broker; SpecError names the field. `strict` refuses fields that the schema lacks."""
    meta = read_meta(obj, names.BROKER, label_name=False)
    spec = Fields(obj.get("spec"), "spec")
    broker = Broker(
        meta=meta,
        uri=spec.text("uri"),
        credentials_secret_ref=spec.required("credentialsSecretRef", read_local_ref),
        runtime_credentials_secret_ref=spec.child("runtimeCredentialsSecretRef", read_local_ref),
        tls=spec.child("tls", _read_tls),
        management=spec.child("management", lambda fields: Management(fields.text("uri"))),
        access=spec.choice("access", (SHARED, PER_CONSUMER, ""), ""),
        allowed_namespaces=spec.child("allowedNamespaces", _read_allowed) or AllowedNamespaces(),
    )
    _check(broker)
    if strict:
        for path in spec.unknown():
            raise SpecError(path, "is not a field of Broker")
    return broker


def _read_tls(fields: Fields) -> Tls:
    return Tls(
        fields.child("caSecretRef", lambda ref: CaSecretRef(ref.name(), ref.text("key", "ca.crt"))),
        fields.child("clientCertificateSecretRef", read_local_ref),
        fields.text("serverName", ""),
    )


def _read_allowed(fields: Fields) -> AllowedNamespaces:
    allowed = AllowedNamespaces(
        fields.choice("from", ("Same", "All", "Selector"), "Same"), fields.mapping("selector")
    )
    if (allowed.from_ == "Selector") != fields.has("selector"):
        raise SpecError(fields.at("selector"), "goes with `from: Selector`, and only with it")
    return allowed


def _check_uri(path: str, uri: str, schemes: tuple[str, ...]) -> SplitResult:
    """Check what no URI of ours may lack. The text is not repeated: it may hold credentials."""
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError as error:
        raise SpecError(path, "is not a URI with a port from 1 to 65535") from error
    if parts.username is not None or parts.password is not None:
        raise SpecError(path, "must not carry credentials; put them into the Secret of credentialsSecretRef")
    if parts.scheme not in schemes:
        raise SpecError(path, f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    if not parts.hostname:
        raise SpecError(path, "must name a host after ://")
    return parts


def _check_broker_uri(uri: str) -> None:
    parts = _check_uri("spec.uri", uri, ("amqp", "amqps"))
    if "/" in parts.path[1:]:
        raise SpecError(
            "spec.uri", "must have one path segment at most, the virtual host; write its slashes as %2F"
        )
    if parts.fragment or not _URI_QUERY.match(parts.query):
        raise SpecError(
            "spec.uri", "may carry only the query parameters heartbeat (s) and connection_timeout (ms)"
        )


def _check(broker: Broker) -> None:
    """Apply the rules over several fields, which CEL checks in a cluster."""
    _check_broker_uri(broker.uri)
    if broker.management is not None:
        _check_uri("spec.management.uri", broker.management.uri, ("http", "https"))
    if broker.tls is not None and not broker.uri.startswith("amqps:"):
        raise SpecError("spec.tls", "needs an encrypted connection; begin spec.uri with amqps://")
    access = effective_access(broker)
    if access == PER_CONSUMER and broker.management is None:
        raise SpecError("spec.access", "PerConsumer needs spec.management, through which users are made")
    if access == PER_CONSUMER and broker.runtime_credentials_secret_ref is not None:
        raise SpecError("spec.runtimeCredentialsSecretRef", "works only with access Shared")
    if broker.allowed_namespaces.from_ != "Same" and access != PER_CONSUMER:
        raise SpecError(
            "spec.allowedNamespaces.from",
            "other than Same needs access PerConsumer: shared credentials would reach other namespaces",
        )
