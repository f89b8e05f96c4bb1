"""Broker users of Consumers as data: their names, passwords, permissions, and what to do next about them.

Pure; called by `reconcile.user`, which carries the steps out. RabbitMQ matches names, not kinds of object, so
a permission is a list of names that were each derived from an ID (design.md section 3): never `write` on a
queue's name, never `read` on an exchange's.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from lunaq_operator import names
from lunaq_runtime import ids
from lunaq_runtime import policy as policies

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lunaq_runtime.policy import Policy

TAG = "lunaq"
"""On every user of ours; like any tag that RabbitMQ does not know, it gives no access to anything."""

SLOTS = ("a", "b")
NOTHING = "^$"
"""The pattern that no name matches: RabbitMQ's own word for "may not"."""

_CLOSING = NOTHING + "(?#closing)"
"""Matches the same; to us: connections from before, under wider permissions, are still to be closed."""

_SPECIAL = frozenset(".^$*+?()[]{}|\\")
_ANY = "*"
_PASSWORD = re.compile(r"[-_A-Za-z0-9]{43}\Z")
_SALT_BYTES = 4
_HASHES = {
    "rabbit_password_hashing_sha256": hashlib.sha256,
    "rabbit_password_hashing_sha512": hashlib.sha512,
}
HASHING = "rabbit_password_hashing_sha256"

LARGEST_PATTERN = 30_000
"""Bytes of one permission; RabbitMQ 3.10 refuses what its PCRE compiles to more than 64 KiB, some 32,000."""


class Place(NamedTuple):
    """A Broker as far as its users' names say it: which cluster's, and which one."""

    cluster: str
    namespace: str
    broker: str

    @property
    def prefix(self) -> str:
        """What every user's name at this Broker begins with."""
        text = "\0".join(self)
        return f"lunaq.{hashlib.sha256(text.encode()).hexdigest()[:16]}."


class Slots(NamedTuple):
    """The two user names of one Consumer at one Broker."""

    a: str
    b: str

    def other(self, name: str) -> str:
        """Return the name that is not `name`."""
        return self.b if name == self.a else self.a


def slots(place: Place, namespace: str, consumer: str) -> Slots:
    """Name a Consumer's users; at most 152 characters.

    Neither a namespace nor a Consumer has a dot in its name, so no two Consumers share a user.
    """
    return Slots(*(f"{place.prefix}{namespace}.{consumer}.{slot}" for slot in SLOTS))


def owner(place: Place, name: str) -> tuple[str, str] | None:
    """Return namespace and name of the Consumer that a user belongs to; None for a user that is not ours."""
    if not name.startswith(place.prefix):
        return None
    parts = name.removeprefix(place.prefix).split(".")
    well_formed = len(parts) == 3 and parts[2] in SLOTS and all(parts)  # noqa: PLR2004 - as `slots` writes it
    return (parts[0], parts[1]) if well_formed else None


@dataclass(frozen=True, slots=True)
class Texts:
    """Permissions of one user on one virtual host, as RabbitMQ keeps them: three regular expressions."""

    configure: str
    write: str
    read: str

    @property
    def closing(self) -> Texts:
        """The same rights, marked: connections from before are still to be closed."""
        return Texts(_CLOSING, self.write, self.read)


@dataclass(frozen=True, slots=True)
class Account:
    """A user at the broker; `permissions` by virtual host."""

    tags: frozenset[str]
    password_hash: str
    hashing: str
    permissions: Mapping[str, Texts]

    @property
    def plain(self) -> bool:
        """Whether it has our tag and no other, which could give it access to the management API."""
        return self.tags == {TAG}


@dataclass(frozen=True, slots=True)
class Grants:
    """What a user may do: read from one queue, write to exchanges.

    `exchanges` are names; `patterns` are policy patterns with a `*` in them, of which each stands for the
    exchanges of all Queues that it covers. Both sorted.
    """

    queue: str | None = None
    exchanges: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()

    def texts(self) -> Texts:
        """Write them as RabbitMQ takes them."""
        read = NOTHING if self.queue is None else _anchored([escape(self.queue)])
        return Texts(NOTHING, _write_text(self.exchanges, self.patterns), read)

    def covers(self, other: Grants) -> bool:
        """Tell whether whoever has these has all that `other` gives."""
        if other.queue is not None and other.queue != self.queue:
            return False
        wider = set(self.patterns)
        return all(self._writes(name) for name in other.exchanges) and all(
            not wider.isdisjoint(_wider(pattern)) for pattern in other.patterns
        )

    def _writes(self, exchange: str) -> bool:
        queue_id = exchange.removesuffix(ids.exchange_name(""))
        labels = queue_id != exchange and names.QUEUE_ID.match(queue_id)
        return exchange in self.exchanges or bool(
            labels and any(policies.matches(pattern, queue_id) for pattern in self.patterns)
        )


def grants(
    policy: Policy, queue_id: str, queue_name: str, *, retries: bool, named: Mapping[str, str]
) -> Grants:
    """Derive what a Consumer's user may do from its policy.

    `queue_id` and `queue_name` are its Queue's; `retries`: it has a retry exchange. `named` has the Queues of
    the Broker whose name on it is not their ID, with that name; an empty one takes nothing (observed, or
    claimed by an older Queue).
    """
    consumes = policy.allows(policies.CONSUME, queue_id)
    exchanges = {ids.retry_exchange_name(queue_name)} if consumes and retries else set()
    patterns = set()
    if policy.publish:
        for pattern in policy.publish_to:
            if _ANY in pattern.split(":"):
                patterns.add(pattern)
            elif pattern not in named:
                exchanges.add(ids.exchange_name(pattern))
        for other, name in named.items():
            if name and policy.allows(policies.PUBLISH_TO, other):
                exchanges.add(ids.exchange_name(name))
    return Grants(queue_name if consumes else None, tuple(sorted(exchanges)), tuple(sorted(patterns)))


def escape(name: str) -> str:
    """Write a name as a regular expression that matches it alone.

    RabbitMQ matches bytes: only ASCII characters are special there, and no other may be escaped.
    """
    return "".join(f"\\{character}" if character in _SPECIAL else character for character in name)


def _anchored(alternatives: Iterable[str]) -> str:
    # \z and not $, which in RabbitMQ's dialect also matches before a newline at the end.
    return rf"^(?:{'|'.join(alternatives)})\z"


def _write_text(exchanges: tuple[str, ...], patterns: tuple[str, ...]) -> str:
    if not exchanges and not patterns:
        return NOTHING
    suffix = escape(ids.exchange_name(""))
    by_namespace: dict[str, list[str]] = {}
    for name in exchanges:
        namespace, colon, rest = name.partition(":")
        by_namespace.setdefault(namespace if colon else "", []).append(escape(rest if colon else name))
    # Each namespace once, so that hundreds of names fit.
    alternatives = [
        f"{escape(namespace)}:(?:{'|'.join(names)})" if namespace else "|".join(names)
        for namespace, names in sorted(by_namespace.items())
    ]
    for pattern in patterns:
        parts = (names.LABEL_TEXT if part == _ANY else escape(part) for part in pattern.split(":", 1))
        alternatives.append(":".join(parts) + suffix)
    return _anchored(alternatives)


def _wider(pattern: str) -> set[str]:
    namespace, _, name = pattern.partition(":")
    return {pattern, f"{namespace}:{_ANY}", f"{_ANY}:{name}", f"{_ANY}:{_ANY}"}


def is_password(text: str) -> bool:
    """Tell whether a text has the form of the passwords we make (`secrets.token_urlsafe(32)`)."""
    return _PASSWORD.match(text) is not None


def hash_password(password: str, salt: bytes) -> str:
    """Hash a password as RabbitMQ's `rabbit_password_hashing_sha256` does; `salt` has four bytes."""
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def password_matches(password: str, account: Account) -> bool:
    """Tell whether a user has that password; not, where it is hashed in a way that we do not know."""
    hashed = _HASHES.get(account.hashing)
    try:
        kept = base64.b64decode(account.password_hash, validate=True)
    except ValueError:
        return False
    salt, digest = kept[:_SALT_BYTES], kept[_SALT_BYTES:]
    return hashed is not None and hmac.compare_digest(hashed(salt + password.encode()).digest(), digest)


class Do(Enum):
    """The next thing to do about a Consumer's users."""

    SWITCH = "make the user `name` with a new password, and point the Secret at it"
    RESTORE = "give the user `name` the Secret's password again"
    GRANT = "give `name` more than it has, or the same"
    NARROW = "take rights from `name`, and close what was opened under them"
    DROP = "delete the user `name`"
    WAIT = "look again: pods still use the user `name`"


class Step(NamedTuple):
    """What to do, to which user."""

    do: Do
    name: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of one Consumer's users; the input of `next_step`.

    `current` and `password` are the Secret's, empty where it has none that can be used. `granted` is what
    this process gave each user last, where it did. `old_idle`: nobody is connected as the other user, or
    they had time enough. `rotate`: a new password is due.
    """

    slots: Slots
    vhost: str
    accounts: Mapping[str, Account]
    current: str
    password: str
    wanted: Grants
    granted: Mapping[str, Grants]
    old_idle: bool
    rotate: bool


def next_step(seen: Seen) -> Step | None:
    """Return the next step, None where all is as it should be.

    Each step can be the last before a crash: whatever it left is a state that this function goes on from.
    """
    if not seen.current:
        free = [name for name in seen.slots if name not in seen.accounts]
        return Step(Do.SWITCH, free[0] if free else seen.slots.a)
    account = seen.accounts.get(seen.current)
    if account is None or not account.plain or not password_matches(seen.password, account):
        return Step(Do.RESTORE, seen.current)
    old = seen.slots.other(seen.current)
    for name in (seen.current, old):
        step = _permissions_step(seen, name)
        if step is not None:
            return step
    if old in seen.accounts:
        return Step(Do.DROP if seen.old_idle else Do.WAIT, old)
    return Step(Do.SWITCH, old) if seen.rotate else None


def _permissions_step(seen: Seen, name: str) -> Step | None:
    account = seen.accounts.get(name)
    if account is None:
        return None
    wanted, kept = seen.wanted.texts(), account.permissions
    if dict(kept) == {seen.vhost: wanted}:
        return None
    before = seen.granted.get(name)
    known = before is not None and dict(kept) == {seen.vhost: before.texts()}
    grows = known and before is not None and seen.wanted.covers(before)
    return Step(Do.GRANT if grows else Do.NARROW, name)
