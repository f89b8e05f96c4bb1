"""The kinds of objects the operator reads and writes, with their URLs; used by watch, store and kube.

One table, because what is watched, what is indexed and what is written must not drift apart. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from lunaq_operator import names


@dataclass(frozen=True, slots=True)
class Kind:
    """One resource of the API; `selector` is the label selector under which it is watched."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    selector: str = ""

    @property
    def api_version(self) -> str:
        """Return `apiVersion` as objects spell it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Return the URL path of a collection (without `name`), an object or a subresource of it."""
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name:
            parts.append(name)
        if subresource:
            parts.append(subresource)
        return "/".join(parts)


_RBAC = "rbac.authorization.k8s.io"

BROKERS = Kind(names.GROUP, names.VERSION, names.PLURALS[names.BROKER], names.BROKER)
QUEUES = Kind(names.GROUP, names.VERSION, names.PLURALS[names.QUEUE], names.QUEUE)
CONSUMERS = Kind(names.GROUP, names.VERSION, names.PLURALS[names.CONSUMER], names.CONSUMER)
ROLES = Kind(_RBAC, "v1", "roles", "Role")
ROLE_BINDINGS = Kind(_RBAC, "v1", "rolebindings", "RoleBinding")
CLUSTER_ROLES = Kind(_RBAC, "v1", "clusterroles", "ClusterRole", namespaced=False)
CLUSTER_ROLE_BINDINGS = Kind(_RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False)
DEPLOYMENTS = Kind("apps", "v1", "deployments", "Deployment", selector=names.LABEL_CONSUMER)
CONFIG_MAPS = Kind("", "v1", "configmaps", "ConfigMap", selector=names.LABEL_CONSUMER)
SERVICE_ACCOUNTS = Kind("", "v1", "serviceaccounts", "ServiceAccount", selector=names.LABEL_CONSUMER)
NAMESPACES = Kind("", "v1", "namespaces", "Namespace", namespaced=False)

SECRETS = Kind("", "v1", "secrets", "Secret")
PODS = Kind("", "v1", "pods", "Pod")
LEASES = Kind("coordination.k8s.io", "v1", "leases", "Lease")
EVENTS = Kind("events.k8s.io", "v1", "events", "Event")

OURS = (BROKERS, QUEUES, CONSUMERS)
OWNED = (DEPLOYMENTS, CONFIG_MAPS, SERVICE_ACCOUNTS)
RBAC = (ROLES, ROLE_BINDINGS, CLUSTER_ROLES, CLUSTER_ROLE_BINDINGS)


def watched(*, cluster_wide: bool) -> tuple[Kind, ...]:
    """Return what is watched; a namespaced installation cannot read anything cluster-scoped."""
    everything = (*OURS, *OWNED, *RBAC, NAMESPACES)
    return tuple(kind for kind in everything if cluster_wide or kind.namespaced)
