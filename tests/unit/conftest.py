"""What the unit tests of the worker, and those of AMQP, share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.amqp_peer import Peer
from harness.amqp_publishing import connected
from harness.worker_stage import Stage
from lunaq_runtime.brokers.memory import MemoryBroker, MemoryServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lunaq_runtime.brokers.amqp import AmqpBroker


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """A stage on a memory broker of the test's own."""
    server = MemoryServer()
    stage = Stage(lambda: MemoryBroker(server))
    await stage.open()
    yield stage
    await stage.close()


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    made = Peer()
    await made.start()
    yield made
    await made.close()
    assert made.offences == []


@pytest.fixture
async def broker(peer: Peer) -> AsyncIterator[AmqpBroker]:
    async with connected(peer) as made:
        yield made
