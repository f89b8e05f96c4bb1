"""What tests of publishing against `amqp_peer` share: a broker connected to it, messages, their answers."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from harness.waiting import eventually
from lunaq_runtime.brokers.amqp import AmqpBroker
from lunaq_runtime.message import Outgoing, Properties

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from harness.amqp_peer import Connection, Peer, Publish
    from lunaq_runtime.brokers.base import BrokerError


@asynccontextmanager
async def connected(peer: Peer, **options: Any) -> AsyncIterator[AmqpBroker]:
    broker = AmqpBroker(peer.uri, **{"reconnect_delay": 0.01, "reconnect_max_delay": 0.1} | options)
    await broker.connect()
    try:
        yield broker
    finally:
        await broker.close()


async def until(condition: Callable[[], object], what: str) -> None:
    async def true() -> bool:
        return bool(condition())

    await eventually(true, what)


def message(body: bytes = b"x", exchange: str = "x", key: str = "k", **properties: Any) -> Outgoing:
    return Outgoing(exchange, key, body, Properties(**properties))


class Answers:
    """What became of messages that were published by callback, by name: None or the reason."""

    def __init__(self, broker: AmqpBroker) -> None:
        self._broker = broker
        self.reasons: dict[str, str | None] = {}
        self.texts: dict[str, str] = {}
        self.on_told: Callable[[str], object] = lambda _name: None

    def publish(self, name: str, outgoing: Outgoing | None = None, **options: Any) -> None:
        def done(error: BrokerError | None) -> None:
            assert name not in self.reasons, f"{name} was told of twice"
            self.reasons[name] = error.reason if error else None
            self.texts[name] = str(error or "")
            self.on_told(name)

        self._broker.publish_soon(outgoing or message(name.encode()), done, **options)

    async def all(self, *names: str) -> dict[str, str | None]:
        await until(lambda: set(names) <= set(self.reasons), f"answers for {names}")
        return {name: self.reasons[name] for name in names}


def confirm(connection: Connection, publish: Publish) -> None:
    connection.confirm(publish)


async def warm(peer: Peer, broker: AmqpBroker) -> Connection:
    """Prove the exchange and open the shared channel, then leave the confirms to the test."""
    peer.on_publish = confirm
    await broker.publish(message())
    await broker.publish(message())
    peer.on_publish = None
    connection = peer.last
    connection.publishes.clear()
    return connection


async def published(connection: Connection, number: int) -> list[Publish]:
    await until(lambda: len(connection.publishes) >= number, f"{number} publishes")
    return connection.publishes
