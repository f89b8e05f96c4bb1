"""What all resources have in common: metadata, references, and the rules of names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lunaq_operator import names
from lunaq_operator.resources.fields import DNS_LABEL, DNS_SUBDOMAIN, Fields, SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Meta:
    """An object's metadata; timestamps are RFC 3339 texts."""

    name: str
    namespace: str
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    created: str = ""
    deleted: str = ""
    finalizers: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference by name; `namespace` is filled in with the referring object's own."""

    name: str
    namespace: str


@dataclass(frozen=True, slots=True)
class LocalRef:
    """A reference by name to an object of the same namespace."""

    name: str


@dataclass(frozen=True, slots=True)
class Resource:
    """What every parsed resource can be asked."""

    meta: Meta

    @property
    def name(self) -> str:
        return self.meta.name

    @property
    def namespace(self) -> str:
        return self.meta.namespace

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return (self.meta.namespace, self.meta.name)

    @property
    def uid(self) -> str:
        return self.meta.uid

    @property
    def generation(self) -> int:
        return self.meta.generation

    @property
    def deletion_timestamp(self) -> str:
        """When deletion was asked for, empty if it was not."""
        return self.meta.deleted

    @property
    def finalizers(self) -> tuple[str, ...]:
        return self.meta.finalizers


def read_meta(obj: Mapping[str, Any], kind: str, *, label_name: bool) -> Meta:
    """Read the metadata of an object of ours; `label_name`: its name must be a DNS label."""
    if obj.get("kind") != kind or obj.get("apiVersion") != names.API_VERSION:
        raise SpecError("kind", f"must be {names.API_VERSION} {kind}")
    meta = Fields(obj.get("metadata"), "metadata")
    pattern = DNS_LABEL if label_name else DNS_SUBDOMAIN
    says = "a name of lower case letters, digits and hyphens (at most 63, no dot)"
    return Meta(
        name=meta.text("name", pattern=pattern, says=says if label_name else "the name of an object"),
        namespace=meta.text("namespace", pattern=DNS_LABEL, says="the name of a namespace"),
        uid=meta.text("uid", ""),
        generation=meta.integer("generation", 0, most=2**63 - 1),
        resource_version=meta.text("resourceVersion", ""),
        created=str(meta.data.get("creationTimestamp") or ""),
        deleted=str(meta.data.get("deletionTimestamp") or ""),
        finalizers=meta.texts("finalizers"),
        labels=meta.texts_by_key("labels"),
        annotations=meta.texts_by_key("annotations"),
    )


def read_local_ref(fields: Fields) -> LocalRef:
    """Read `{name}`."""
    return LocalRef(fields.name())


def read_ref(fields: Fields, namespace: str) -> Ref:
    """Read `{name, namespace}`, the namespace by default the given one."""
    return Ref(fields.name(), fields.text("namespace", namespace, pattern=DNS_LABEL, says="a namespace"))
