"""An exclusive consumer changes over to new credentials by ending before its successor begins."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from lua_driver import document_of

from harness.waiting import eventually
from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.brokers.memory import MemoryBroker, MemoryServer
from lunaq_runtime.policy_source import PolicySource
from lunaq_runtime.runner import Runner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lunaq_runtime.brokers.base import Broker
    from lunaq_runtime.entries.model import Document
    from lunaq_runtime.ids import Id


class World:
    """Memory brokers that share one server, and credentials that a test may change."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.pair: tuple[str, str] | None = ("a", "1")
        self.server = MemoryServer()
        self.made: list[MemoryBroker] = []

    def brokers(self) -> dict[Id, Broker]:
        self.made.append(MemoryBroker(self.server))
        return dict.fromkeys(self.document.drivers, self.made[-1])

    def credentials(self) -> tuple[str, str]:
        if self.pair is None:
            raise BrokerError("connection", "no credentials")
        return self.pair

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Runner]:
        runner = Runner(self.document, PolicySource.allow_all(), self.brokers, self.credentials)
        await runner.start()
        work = asyncio.create_task(runner.run())

        async def ready() -> bool:
            return runner.ready

        await eventually(ready, "the runner to consume")
        yield runner
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await runner.drain()


def document(*, exclusive: bool) -> Document:
    return document_of(driver_options={"amqp": {"exclusive": exclusive}})


async def _changed_over(world: World, runner: Runner) -> None:
    async def changed() -> bool:
        first, *others = world.made
        return len(others) == 1 and runner.ready and others[0].connected and not first.connected

    await eventually(changed, "the second broker to be the only one that is connected")


async def test_new_credentials_bring_a_new_connection_and_close_the_old_one() -> None:
    world = World(document(exclusive=False))
    async with world.running() as runner:
        world.pair = ("b", "2")
        await _changed_over(world, runner)


async def test_an_exclusive_consumer_ends_before_its_successor_begins() -> None:
    world = World(document(exclusive=True))
    async with world.running() as runner:
        world.pair = ("b", "2")
        await _changed_over(world, runner)


async def test_credentials_that_cannot_be_read_for_a_while_change_nothing() -> None:
    world = World(document(exclusive=False))
    async with world.running() as runner:
        asked = 0
        original = world.credentials

        def counting() -> tuple[str, str]:
            nonlocal asked
            asked += 1
            return original()

        runner._credentials = counting
        world.pair = None

        async def asked_twice() -> bool:
            return asked >= 2

        await eventually(asked_twice, "the credentials to be asked for twice")
        assert (len(world.made), runner.ready) == (1, True)


async def test_what_a_runner_shows_before_it_has_started_is_nothing() -> None:
    world = World(document(exclusive=False))
    runner = Runner(world.document, PolicySource.allow_all(), world.brokers)
    assert (runner.ready, runner.healthy, runner.reconnects, list(runner.counters())) == (False, True, 0, [])
    await runner.drain()
