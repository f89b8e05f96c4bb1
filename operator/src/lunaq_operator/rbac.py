"""Kubernetes RBAC, evaluated into policies; called by the Consumer reconciler and by `lunaq run`.

It must answer as the API server's SubjectAccessReview does (design.md section 3; the rules are those of
`plugin/pkg/auth/authorizer/rbac` and `pkg/registry/rbac/validation` in Kubernetes). Roles are evaluated
once and bindings are indexed by subject, so that a thousand Consumers are a thousand short look-ups.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lunaq_operator import names
from lunaq_runtime.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PUBLISH = "publish"
CONSUME = "consume"

_ANY = "*"
_RESOURCE_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?\Z")

_Names = frozenset[str] | None
"""Resource names a rule is limited to; None is "all"."""


@dataclass(frozen=True, slots=True)
class _Grant:
    """What one role allows on our resources, whatever else it holds."""

    publish_as: tuple[_Names, ...] = ()
    publish_to: tuple[_Names, ...] = ()
    consume: tuple[_Names, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.publish_as or self.publish_to or self.consume)


@dataclass(frozen=True, slots=True)
class Derived:
    """The policy of one Consumer.

    `unresolved` names the RoleBindings that apply to it but refer to a ClusterRole that this
    installation may not read: `<namespace>/<binding> -> <ClusterRole>`, sorted.
    """

    policy: Policy
    unresolved: tuple[str, ...] = ()


@dataclass(slots=True)
class Rbac:
    """An index over all RBAC objects the operator sees; build it anew when one of them changes."""

    _grants: dict[str, list[tuple[str, _Grant]]] = field(default_factory=dict)
    _unresolved: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        roles: Iterable[Mapping[str, Any]],
        role_bindings: Iterable[Mapping[str, Any]],
        cluster_roles: Iterable[Mapping[str, Any]] | None = (),
        cluster_role_bindings: Iterable[Mapping[str, Any]] = (),
    ) -> Rbac:
        """Index API objects; `cluster_roles` None: a namespaced installation, which cannot read them."""
        index = cls()
        local = {(_namespace(role), _name(role)): _grant(role) for role in roles}
        cluster = {_name(role): _grant(role) for role in cluster_roles or ()}
        for binding in role_bindings:
            namespace, ref = _namespace(binding), binding.get("roleRef") or {}
            if ref.get("kind") == "ClusterRole":
                if cluster_roles is None:
                    index._miss(binding, namespace, str(ref.get("name")))
                grant = cluster.get(str(ref.get("name")))
            else:
                grant = local.get((namespace, str(ref.get("name")))) if ref.get("kind") == "Role" else None
            index._add(binding, namespace, grant)
        for binding in cluster_role_bindings:
            ref = binding.get("roleRef") or {}
            grant = cluster.get(str(ref.get("name"))) if ref.get("kind") == "ClusterRole" else None
            index._add(binding, _ANY, grant)
        return index

    def derive(self, namespace: str, consumer: str, service_account: str) -> Derived:
        """Evaluate what the Consumer `namespace/consumer` may do under that ServiceAccount.

        The ServiceAccount is in the Consumer's namespace; it need not exist.
        """
        publish = False
        publish_to: set[str] = set()
        consume: set[str] = set()
        unresolved: set[str] = set()
        user = _user_key(names.service_account_user(namespace, service_account))
        for subject in (user, *map(_group_key, names.service_account_groups(namespace))):
            unresolved.update(self._unresolved.get(subject, ()))
            for scope, grant in self._grants.get(subject, ()):
                if scope in (_ANY, namespace):
                    publish = publish or any(n is None or consumer in n for n in grant.publish_as)
                publish_to.update(_patterns(scope, grant.publish_to))
                consume.update(_patterns(scope, grant.consume))
        policy = Policy(publish=publish, publish_to=_minimal(publish_to), consume=_minimal(consume))
        return Derived(policy, tuple(sorted(unresolved)))

    def _add(self, binding: Mapping[str, Any], scope: str, grant: _Grant | None) -> None:
        if grant:
            for subject in _subjects(binding):
                self._grants.setdefault(subject, []).append((scope, grant))

    def _miss(self, binding: Mapping[str, Any], namespace: str, role: str) -> None:
        text = f"{namespace}/{_name(binding)} -> {role}"
        for subject in _subjects(binding):
            self._unresolved.setdefault(subject, []).append(text)


def grant_commands(
    verb: str, resource: str, name: str, *, namespace: str, service_account: str, account_namespace: str
) -> str:
    """Write the kubectl commands that grant one right on one object to a ServiceAccount.

    `resource` is `queues` or `consumers`; the role and its binding are made in `namespace`, the object's.
    """
    role = f"{service_account}-{verb}-{name}"
    return (
        f"kubectl create role {role} -n {namespace} --verb={verb} "
        f"--resource={resource}.{names.GROUP} --resource-name={name} && "
        f"kubectl create rolebinding {role} -n {namespace} --role={role} "
        f"--serviceaccount={account_namespace}:{service_account}"
    )


def _user_key(name: str) -> str:
    return f"u:{name}"


def _group_key(name: str) -> str:
    return f"g:{name}"


def _subjects(binding: Mapping[str, Any]) -> set[str]:
    """Return the index keys of a binding's subjects; of an unknown kind there are none."""
    keys = set()
    for subject in binding.get("subjects") or ():
        name = str(subject.get("name"))
        if subject.get("kind") == "User":
            keys.add(_user_key(name))
        elif subject.get("kind") == "Group":
            keys.add(_group_key(name))
        elif subject.get("kind") == "ServiceAccount":
            # A ClusterRoleBinding has no namespace to lend to a subject that names none.
            namespace = subject.get("namespace") or _namespace(binding)
            if namespace:
                keys.add(_user_key(names.service_account_user(namespace, name)))
    return keys


def _grant(role: Mapping[str, Any]) -> _Grant:
    """Evaluate a role's rules; an aggregated ClusterRole's were filled in by the controller."""
    publish_as: list[_Names] = []
    publish_to: list[_Names] = []
    consume: list[_Names] = []
    for rule in role.get("rules") or ():
        if not _holds(rule.get("apiGroups"), names.GROUP):
            continue
        resources, verbs = rule.get("resources"), rule.get("verbs")
        limit = _resource_names(rule.get("resourceNames"))
        if _holds(resources, names.PLURALS[names.CONSUMER]) and _holds(verbs, PUBLISH):
            publish_as.append(limit)
        if _holds(resources, names.PLURALS[names.QUEUE]):
            if _holds(verbs, PUBLISH):
                publish_to.append(limit)
            if _holds(verbs, CONSUME):
                consume.append(limit)
    return _Grant(tuple(publish_as), tuple(publish_to), tuple(consume))


def _holds(values: Iterable[str] | None, wanted: str) -> bool:
    """Match as RBAC does: equal, or `*`; `queues/*` and `*/*` speak of subresources only."""
    return values is not None and (wanted in values or _ANY in values)


def _resource_names(values: Iterable[str] | None) -> _Names:
    """Return the names a rule is limited to.

    RBAC compares them letter by letter, so what cannot be an object's name grants nothing; above all `*`,
    which in a pattern would mean everything.
    """
    if not values:
        return None
    return frozenset(value for value in values if _RESOURCE_NAME.match(value))


def _patterns(scope: str, limits: tuple[_Names, ...]) -> set[str]:
    patterns = set()
    for limit in limits:
        patterns.update({f"{scope}:{_ANY}"} if limit is None else {f"{scope}:{name}" for name in limit})
    return patterns


def _minimal(patterns: set[str]) -> tuple[str, ...]:
    """Drop what a wider pattern covers, and sort."""
    if f"{_ANY}:{_ANY}" in patterns:
        return (f"{_ANY}:{_ANY}",)

    def covered(pattern: str) -> bool:
        namespace, _, name = pattern.partition(":")
        wider = {f"{namespace}:{_ANY}", f"{_ANY}:{name}"} - {pattern}
        return not wider.isdisjoint(patterns)

    return tuple(sorted(pattern for pattern in patterns if not covered(pattern)))


def _name(obj: Mapping[str, Any]) -> str:
    return str((obj.get("metadata") or {}).get("name") or "")


def _namespace(obj: Mapping[str, Any]) -> str:
    return str((obj.get("metadata") or {}).get("namespace") or "")
