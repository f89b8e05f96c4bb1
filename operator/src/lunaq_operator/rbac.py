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
from lunaq_runtime import policy
from lunaq_runtime.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PUBLISH = "publish"
CONSUME = "consume"
"""The two verbs."""

_ANY = "*"
_RESOURCE_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")

_Names = frozenset[str] | None
"""Resource names a rule is limited to; None is "all"."""


@dataclass(frozen=True, slots=True)
class _Role:
    """What one role allows on our resources, whatever else it holds."""

    publish_as: tuple[_Names, ...] = ()
    publish_to: tuple[_Names, ...] = ()
    consume: tuple[_Names, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.publish_as or self.publish_to or self.consume)


@dataclass(frozen=True, slots=True, order=True)
class Source:
    """Where a right comes from, as people name objects: `RoleBinding app/worker`, `ClusterRole reader`."""

    binding: str
    role: str


@dataclass(frozen=True, slots=True)
class Grant:
    """One right: an action of `lunaq_runtime.policy`, its pattern of queue IDs, and all that grants it.

    `pattern` is empty for the right to publish at all. `sources` are sorted, and never empty.
    """

    action: str
    pattern: str
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class Derived:
    """The policy of one Consumer, and why it is so.

    `grants` has one for each right of the policy, in its order; what a wider pattern covers is not there.
    `unresolved` are the RoleBindings that apply to it but refer to a ClusterRole that this installation may
    not read, sorted.
    """

    policy: Policy
    grants: tuple[Grant, ...] = ()
    unresolved: tuple[Source, ...] = ()


@dataclass(slots=True)
class Rbac:
    """An index over all RBAC objects the operator sees; build it anew when one of them changes."""

    _bound: dict[str, list[tuple[str, _Role, Source]]] = field(default_factory=dict)
    """By subject: the namespace of a binding (or `*`), what its role allows, and its name."""

    _unresolved: dict[str, list[Source]] = field(default_factory=dict)

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
        local = {(_namespace(role), _name(role)): _role(role) for role in roles}
        cluster = {_name(role): _role(role) for role in cluster_roles or ()}
        for binding in role_bindings:
            namespace = _namespace(binding)
            kind, name = _role_ref(binding)
            source = Source(f"RoleBinding {namespace}/{_name(binding)}", f"{kind} {name}")
            if kind == "ClusterRole":
                if cluster_roles is None:
                    index._miss(binding, source)
                index._add(binding, namespace, cluster.get(name), source)
            elif kind == "Role":
                source = Source(source.binding, f"Role {namespace}/{name}")
                index._add(binding, namespace, local.get((namespace, name)), source)
        for binding in cluster_role_bindings:
            kind, name = _role_ref(binding)
            if kind == "ClusterRole":
                source = Source(f"ClusterRoleBinding {_name(binding)}", f"ClusterRole {name}")
                index._add(binding, _ANY, cluster.get(name), source)
        return index

    def derive(self, namespace: str, consumer: str, service_account: str) -> Derived:
        """Evaluate what the Consumer `namespace/consumer` may do under that ServiceAccount.

        The ServiceAccount is in the Consumer's namespace; it need not exist.
        """
        found: dict[str, dict[str, set[Source]]] = {action: {} for action in _ACTIONS}
        unresolved: set[Source] = set()
        user = _user_key(names.service_account_user(namespace, service_account))
        for subject in (user, *map(_group_key, names.service_account_groups(namespace))):
            unresolved.update(self._unresolved.get(subject, ()))
            for scope, role, source in self._bound.get(subject, ()):
                if scope in (_ANY, namespace) and any(n is None or consumer in n for n in role.publish_as):
                    found[policy.PUBLISH].setdefault("", set()).add(source)
                for action, limits in ((policy.PUBLISH_TO, role.publish_to), (policy.CONSUME, role.consume)):
                    for pattern in _patterns(scope, limits):
                        found[action].setdefault(pattern, set()).add(source)
        kept = {action: _minimal(set(patterns)) for action, patterns in found.items()}
        grants = tuple(
            Grant(action, pattern, tuple(sorted(found[action][pattern])))
            for action in _ACTIONS
            for pattern in kept[action]
        )
        derived = Policy(
            publish=bool(kept[policy.PUBLISH]),
            publish_to=kept[policy.PUBLISH_TO],
            consume=kept[policy.CONSUME],
        )
        return Derived(derived, grants, tuple(sorted(unresolved)))

    def _add(self, binding: Mapping[str, Any], scope: str, role: _Role | None, source: Source) -> None:
        if role:
            for subject in _subjects(binding):
                self._bound.setdefault(subject, []).append((scope, role, source))

    def _miss(self, binding: Mapping[str, Any], source: Source) -> None:
        for subject in _subjects(binding):
            self._unresolved.setdefault(subject, []).append(source)


_ACTIONS = (policy.CONSUME, policy.PUBLISH, policy.PUBLISH_TO)


def _role_ref(binding: Mapping[str, Any]) -> tuple[str, str]:
    """Return kind and name of the role that a binding refers to."""
    ref = binding.get("roleRef") or {}
    return str(ref.get("kind")), str(ref.get("name"))


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


def _role(role: Mapping[str, Any]) -> _Role:
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
    return _Role(tuple(publish_as), tuple(publish_to), tuple(consume))


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
