"""What the unit tests of the worker share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.worker_stage import Stage
from lunaq_runtime.brokers.memory import MemoryBroker, MemoryServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """A stage on a memory broker of the test's own."""
    server = MemoryServer()
    stage = Stage(lambda: MemoryBroker(server))
    await stage.open()
    yield stage
    await stage.close()
