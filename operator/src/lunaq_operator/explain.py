"""Derived rights in words: for a Consumer's status, for `lunaq explain-permissions`, and how to grant more.

Pure. A person who reads it must be able to act on it: each right names the binding and the role that give
it, and what is missing comes with a command to paste.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, NamedTuple

from lunaq_operator import names, rbac
from lunaq_operator.rbac import Derived, Grant, Source
from lunaq_runtime import policy
from lunaq_runtime.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_GRANTS = 50
MAX_SOURCES = 5
MAX_UNRESOLVED = 10
MAX_NAME = 340
"""How much of an explanation a status holds; `lunaq explain-permissions` shows all of it."""

_NONE = "none"
_SHOWN = 3


class Account(NamedTuple):
    """The ServiceAccount whose rights they are."""

    namespace: str
    name: str


class Missing(NamedTuple):
    """A right that is not granted, in words, and the command that grants it."""

    right: str
    command: str


def grant_queue(account: Account, verb: str, namespace: str, queue: str) -> str:
    """Write the shell command that grants `verb` on one Queue."""
    return _grant(account, verb, names.QUEUE, namespace, queue)


def grant_publish(account: Account, consumer: str) -> str:
    """Write the shell command that grants a Consumer, of the account's namespace, to publish at all."""
    return _grant(account, rbac.PUBLISH, names.CONSUMER, account.namespace, consumer)


def _grant(account: Account, verb: str, kind: str, namespace: str, name: str) -> str:
    """Write `kubectl create | kubectl apply`, which may be repeated.

    A role's name says all that is in it and a binding's all whom it binds (colons are in no name that they
    are made of), so that no command undoes what another one granted.
    """
    plural = names.PLURALS[kind]
    role = f"lunaq:{verb}:{plural}:{name}"
    binding = f"{role}:{account.namespace}:{account.name}"
    common = ["-n", namespace, "--dry-run=client", "-o", "yaml"]
    resource = [f"--verb={verb}", f"--resource={plural}.{names.GROUP}", f"--resource-name={name}"]
    subject = [f"--role={role}", f"--serviceaccount={account.namespace}:{account.name}"]
    commands = (
        ["kubectl", "create", "role", role, *resource, *common],
        ["kubectl", "create", "rolebinding", binding, *subject, *common],
    )
    return " && ".join(f"{shlex.join(command)} | kubectl apply -f -" for command in commands)


def status(derived: Derived) -> dict[str, Any]:
    """Return `status.permissions` of a Consumer; bounded, and equal for what is equal."""
    shown = derived.grants[:MAX_GRANTS]
    found: dict[str, Any] = {
        "consume": _short(derived.policy.consume),
        "publish": _short(derived.policy.publish_to) if derived.policy.publish else _NONE,
        "grants": [_status_grant(grant) for grant in shown],
    }
    if len(derived.grants) > len(shown):
        found["omitted"] = len(derived.grants) - len(shown)
    if derived.unresolved:
        found["unresolved"] = [_source(source) for source in derived.unresolved[:MAX_UNRESOLVED]]
    return found


def from_status(permissions: dict[str, Any]) -> Derived:
    """Return what `status` was made of, as far as it is there."""
    grants = tuple(
        Grant(one["action"], one.get("queues", ""), tuple(Source(**source) for source in one["grantedBy"]))
        for one in permissions.get("grants") or ()
    )

    def patterns(action: str) -> tuple[str, ...]:
        return tuple(grant.pattern for grant in grants if grant.action == action)

    held = Policy(bool(patterns(policy.PUBLISH)), patterns(policy.PUBLISH_TO), patterns(policy.CONSUME))
    unresolved = tuple(Source(**source) for source in permissions.get("unresolved") or ())
    return Derived(held, grants, unresolved)


def _status_grant(grant: Grant) -> dict[str, Any]:
    pattern = {"queues": grant.pattern} if grant.pattern else {}
    return {
        "action": grant.action,
        **pattern,
        "grantedBy": [_source(source) for source in grant.sources[:MAX_SOURCES]],
    }


def _source(source: Source) -> dict[str, str]:
    # Names of roles and bindings have no bound, the status' schema has one.
    return {"binding": source.binding[:MAX_NAME], "role": source.role[:MAX_NAME]}


def _short(patterns: tuple[str, ...]) -> str:
    """Write patterns for a column of `kubectl get`."""
    if not patterns:
        return _NONE
    more = f", +{len(patterns) - _SHOWN}" if len(patterns) > _SHOWN else ""
    return ", ".join(patterns[:_SHOWN]) + more


def missing(
    account: Account, consumer: str, queue: tuple[str, str], targets: Iterable[tuple[str, str]], held: Policy
) -> list[Missing]:
    """Name what a Consumer would need and has not.

    `queue` is namespace and name of the Queue it consumes, `targets` are those that its handler publishes
    to as far as one can see; with none, it is taken not to publish.
    """
    found = []
    if not held.allows(policy.CONSUME, ":".join(queue)):
        found.append(Missing(f"consume {':'.join(queue)}", grant_queue(account, rbac.CONSUME, *queue)))
    targets = list(targets)
    if targets and not held.publish:
        found.append(Missing("publish at all", grant_publish(account, consumer)))
    denied = [target for target in targets if not held.allows(policy.PUBLISH_TO, ":".join(target))]
    return found + [
        Missing(f"publish to {':'.join(target)}", grant_queue(account, rbac.PUBLISH, *target))
        for target in denied
    ]


def describe(account: Account, consumer: str, derived: Derived, lacks: Iterable[Missing]) -> str:
    """Write all of it for a terminal."""
    lines = [
        f"Consumer {account.namespace}/{consumer}, ServiceAccount {account.namespace}/{account.name}",
        "",
        "Granted:",
    ]
    rows = [
        (_WORDS[grant.action], grant.pattern, f"{source.binding} -> {source.role}")
        for grant in derived.grants
        for source in grant.sources
    ]
    width = max((len(pattern) for _, pattern, _ in rows), default=0)
    lines += [f"  {word:14}  {pattern:{width}}  {source}" for word, pattern, source in rows] or ["  nothing"]
    if derived.policy.publish_to and not derived.policy.publish:
        lines += ["", "It may not publish at all, so its rights to publish to queues are without effect."]
    if derived.unresolved:
        lines += ["", "Not readable in a namespaced installation, and so without effect:"]
        lines += [f"  {source.binding} -> {source.role}" for source in derived.unresolved]
    for one in lacks:
        lines += ["", f"Missing: {one.right}. Grant it with:", f"  {one.command}"]
    return "\n".join(lines)


_WORDS = {
    policy.CONSUME: "consume",
    policy.PUBLISH: "publish at all",
    policy.PUBLISH_TO: "publish to",
}
