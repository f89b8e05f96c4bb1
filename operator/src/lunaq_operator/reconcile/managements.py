"""One management client per Broker, and what was last seen of its users; kept by the Broker's reconciler.

Everybody compares with that picture, so that an idle pass asks the broker for two lists and not for two
objects a Consumer. Our own writes amend it, and a list that raced with one of them is thrown away.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from lunaq_operator.broker_users import HASHING, TAG, Account, Grants, Place, Texts, slots
from lunaq_operator.management import ManagementError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lunaq_operator.broker_users import Slots
    from lunaq_operator.management import Management
    from lunaq_operator.reconcile.pool import Target
    from lunaq_operator.store import Key

_TRIES = 3


@dataclass(frozen=True, slots=True)
class ManagementTarget:
    """Everything a client is made from; `target` has credentials and TLS."""

    uri: str
    vhost: str
    place: Place
    target: Target


@dataclass(slots=True)
class Users:
    """The users of one Broker: `accounts` as seen last, and the calls that change them."""

    made_from: ManagementTarget
    management: Management
    accounts: dict[str, Account] = field(default_factory=dict)
    granted: dict[str, Grants] = field(default_factory=dict)
    """By user: what this process gave it last."""

    unwanted: dict[str, float] = field(default_factory=dict)
    """By user: since when nobody wants it (monotonic)."""

    checked: set[tuple[str, str]] = field(default_factory=set)
    """Kinds and names that were found to be free on the broker."""

    loaded: bool = False
    retired: bool = False
    """The Broker is going: nothing is made any more."""

    writes: int = 0
    _under_way: int = 0

    @property
    def vhost(self) -> str:
        """The Broker's virtual host."""
        return self.made_from.vhost

    def slots(self, consumer: Key) -> Slots:
        """Name a Consumer's users here."""
        return slots(self.made_from.place, *consumer)

    def of(self, consumer: Key) -> dict[str, Account]:
        """Return a Consumer's users by name."""
        return {name: self.accounts[name] for name in self.slots(consumer) if name in self.accounts}

    async def refresh(self) -> set[str]:
        """Look at all users; returns those that are not as they were left. Raises ManagementError."""
        for _ in range(_TRIES):
            before = (self.writes, self._under_way)
            found = await self.management.accounts(self.made_from.place.prefix)
            if before == (self.writes, 0):
                break
        else:
            return set()  # too busy; the next look will do
        changed = {name for name in {*found, *self.accounts} if found.get(name) != self.accounts.get(name)}
        self.accounts, self.loaded = found, True
        return changed

    async def put(self, name: str, password_hash: str) -> None:
        """Make a user, or give it another password."""
        with self._write():
            await self.management.put_user(name, password_hash)
            old = self.accounts.get(name)
            self.accounts[name] = Account(
                frozenset({TAG}), password_hash, HASHING, old.permissions if old else {}
            )

    async def grant(self, name: str, grants: Grants) -> None:
        """Give a user exactly these rights, none elsewhere, and leave its connections alone."""
        await self._set(name, grants.texts())
        self.granted[name] = grants

    async def narrow(self, name: str, grants: Grants) -> None:
        """Give a user exactly these rights, and close what was opened under others.

        The mark stays where this does not come to its end, so that whoever looks next closes them.
        """
        self.granted.pop(name, None)
        await self._set(name, grants.texts().closing)
        with self._write():
            await self.management.close_connections(name)
        await self.grant(name, grants)

    async def drop(self, name: str) -> None:
        """Delete a user and close its connections."""
        with self._write():
            await self.management.delete_user(name)
            self.accounts.pop(name, None)
            self.granted.pop(name, None)
            self.unwanted.pop(name, None)

    async def _set(self, name: str, texts: Texts) -> None:
        account = self.accounts.get(name) or Account(frozenset(), "", "", {})
        with self._write():
            await self.management.grant(self.vhost, name, texts)
            for vhost in account.permissions:
                if vhost != self.vhost:
                    await self.management.revoke(vhost, name)
            self.accounts[name] = replace(account, permissions={self.vhost: texts})

    @contextlib.contextmanager
    def _write(self) -> Iterator[None]:
        self.writes += 1
        self._under_way += 1
        try:
            yield
        finally:
            self.writes += 1
            self._under_way -= 1


class Managements:
    """Clients by the key of their Broker object; `make` builds one without asking it anything."""

    def __init__(self, make: Callable[[str, Target], Management]) -> None:
        self._make = make
        self._users: dict[Key, Users] = {}
        self._written = 0

    @property
    def writes(self) -> int:
        """How many calls were made that change something at a broker; an idle operator makes none."""
        return self._written + sum(users.writes // 2 for users in self._users.values())

    def get(self, key: Key) -> Users | None:
        """Return the users of a Broker; None where they were never looked at in this process."""
        users = self._users.get(key)
        return users if users is not None and users.loaded else None

    def all(self) -> list[Users]:
        """Return the users of every Broker."""
        return [users for users in self._users.values() if users.loaded]

    async def look(self, key: Key, made_from: ManagementTarget) -> tuple[Users, set[str]]:
        """See how the users are; returns them, and the names that are not as they were left.

        Raises ManagementError. A client of other credentials is replaced once the new ones work.
        """
        users = self._users.get(key)
        if users is None or users.made_from != made_from:
            fresh = Users(made_from, self._make(made_from.uri, _for_management(made_from)))
            try:
                await self._check(fresh)
                await fresh.refresh()
            except BaseException:
                await fresh.management.close()
                raise
            await self.drop(key)
            self._users[key] = fresh
            return fresh, set(fresh.accounts)
        return users, await users.refresh()

    async def _check(self, users: Users) -> None:
        if not await users.management.knows(users.vhost):
            raise ManagementError(
                f"the management API knows no virtual host {users.vhost}; is spec.management.uri another "
                "broker's than spec.uri?",
                refused=True,
            )

    async def drop(self, key: Key) -> None:
        """Close the client of a Broker that is gone or may no longer be used."""
        users = self._users.pop(key, None)
        if users is not None:
            self._written += users.writes // 2
            users.retired = True
            await users.management.close()

    async def close(self) -> None:
        """Close all clients."""
        for key in list(self._users):
            await self.drop(key)


def _for_management(made_from: ManagementTarget) -> Target:
    """Return the target for HTTP: `serverName` is the AMQP host's, and counts where the API has the same."""
    same = urlsplit(made_from.uri).hostname == urlsplit(made_from.target.uri).hostname
    return made_from.target if same else replace(made_from.target, server_name="")
