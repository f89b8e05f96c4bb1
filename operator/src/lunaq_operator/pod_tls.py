"""What a Consumer's pods get of a Broker's `spec.tls`, as files; pure, for `compile` and `render`.

The authorities go to every pod. The client certificate is a login, so it goes only where pods are meant to
log in as the Broker itself does: never to a Consumer with a user of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lunaq_operator.resources import SHARED, SpecError, effective_access

if TYPE_CHECKING:
    from lunaq_operator.resources import Broker

PATH = "/etc/lunaq/tls"
_CA, _CERT, _KEY = "ca.crt", "tls.crt", "tls.key"


@dataclass(frozen=True, slots=True)
class PodTls:
    """Secrets in the pod's namespace, empty where there is none, and the name to ask the server for."""

    server_name: str = ""
    ca_secret: str = ""
    ca_key: str = ""
    certificate_secret: str = ""


def pod_tls(broker: Broker, namespace: str) -> PodTls | None:
    """Work out what pods in `namespace` get; SpecError where they could not mount it."""
    spec = broker.tls
    if spec is None:
        return None
    certificate = ""
    if (
        spec.client_certificate_secret_ref is not None
        and effective_access(broker) == SHARED
        and broker.runtime_credentials_secret_ref is None
    ):
        certificate = spec.client_certificate_secret_ref.name
    ca = spec.ca_secret_ref
    if namespace != broker.namespace and ca is not None:
        raise SpecError(
            "spec.queueRef",
            f"Broker {broker.id} has spec.tls.caSecretRef, a Secret that pods of namespace {namespace} "
            f"cannot mount; create the Consumer in namespace {broker.namespace}, or have the broker's "
            "certificate signed by an authority that the runtime's image knows",
        )
    return PodTls(spec.server_name, ca.name if ca else "", ca.key if ca else "", certificate)


def driver_fields(tls: PodTls | None) -> dict[str, Any]:
    """Return what the driver's entry says about it."""
    if tls is None:
        return {}
    files: dict[str, Any] = {"enabled": True}
    if tls.server_name:
        files["server_name"] = tls.server_name
    if tls.ca_secret:
        files["ca_file"] = f"{PATH}/{_CA}"
    if not tls.certificate_secret:
        return {"tls": files}
    files |= {"cert_file": f"{PATH}/{_CERT}", "key_file": f"{PATH}/{_KEY}"}
    return {"tls": files, "auth_mechanism": "EXTERNAL"}


def volume(tls: PodTls | None, name: str) -> dict[str, Any] | None:
    """Return the pod's volume, which the kubelet keeps up to date; None where there are no files."""
    sources = []
    if tls and tls.ca_secret:
        sources.append(_source(tls.ca_secret, {tls.ca_key: _CA}))
    if tls and tls.certificate_secret:
        sources.append(_source(tls.certificate_secret, {_CERT: _CERT, _KEY: _KEY}))
    return {"name": name, "projected": {"defaultMode": 0o440, "sources": sources}} if sources else None


def _source(secret: str, keys: dict[str, str]) -> dict[str, Any]:
    items = [{"key": key, "path": path} for key, path in keys.items()]
    return {"secret": {"name": secret, "items": items}}
