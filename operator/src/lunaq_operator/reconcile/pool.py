"""One AMQP connection per Broker, however many Queues; kept by the Broker's reconciler, used by the Queues'.

A connection belongs to a Broker's uid and to everything it was made from: when any of that changes, a new
one is made and the old one closed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lunaq_runtime.brokers.base import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lunaq_operator.store import Key
    from lunaq_runtime.brokers.base import Broker

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """Everything a connection is made from; equal targets need no new connection."""

    uid: str
    uri: str
    username: str = field(repr=False)
    password: str = field(repr=False)
    ca: bytes = field(default=b"", repr=False)
    certificate: bytes = field(default=b"", repr=False)
    private_key: bytes = field(default=b"", repr=False)
    server_name: str = ""


@dataclass(frozen=True, slots=True)
class Pooled:
    """A connection, and what it was made from."""

    target: Target
    broker: Broker


class Pool:
    """Connections by the key of their Broker object; `make` builds one without connecting it."""

    def __init__(self, make: Callable[[Target], Broker]) -> None:
        self._make = make
        self._pooled: dict[Key, Pooled] = {}

    def get(self, key: Key) -> Pooled | None:
        """Return the connection of a Broker; None where it was never up in this process."""
        return self._pooled.get(key)

    async def connect(self, key: Key, target: Target) -> bool:
        """See that there is a connection to `target`; True where it is a new one. Raises BrokerError.

        Where that fails, a connection to the same place under other credentials stays: it still works, and
        an unlucky rotation should not take the Queues with it.
        """
        pooled = self._pooled.get(key)
        if pooled is not None and pooled.target == target:
            return False
        broker = self._make(target)
        try:
            await broker.connect()
        except BaseException:
            await _close(broker)
            if pooled is not None and not _same_place(pooled.target, target):
                await self.drop(key)
            raise
        self._pooled[key] = Pooled(target, broker)
        if pooled is not None:
            await _close(pooled.broker)
        return True

    async def drop(self, key: Key) -> None:
        """Close the connection of a Broker that is gone or may no longer be used."""
        pooled = self._pooled.pop(key, None)
        if pooled is not None:
            await _close(pooled.broker)

    async def close(self) -> None:
        """Close all connections."""
        for key in list(self._pooled):
            await self.drop(key)


def _same_place(one: Target, other: Target) -> bool:
    return (one.uid, one.uri) == (other.uid, other.uri)


async def _close(broker: Broker) -> None:
    try:
        await broker.close()
    except (BrokerError, OSError) as error:
        log.debug("Closing a broker connection: %s", error)
