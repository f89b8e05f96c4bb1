"""The worker's promises on the memory broker, with real Lua."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.register_assert_rewrite("harness.worker_scenarios")

from harness.worker_scenarios import (  # noqa: E402 - only now its asserts can speak
    ConcurrencyScenarios,
    DeliveryScenarios,
    DrainScenarios,
    PermissionScenarios,
    PublishScenarios,
    SuspectScenarios,
)
from harness.worker_stage import Stage  # noqa: E402
from lunaq_runtime.brokers.memory import MemoryBroker, MemoryServer  # noqa: E402

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


class TestDelivery(DeliveryScenarios):
    pass


class TestPublish(PublishScenarios):
    pass


class TestConcurrency(ConcurrencyScenarios):
    pass


class TestDrain(DrainScenarios):
    pass


class TestPermission(PermissionScenarios):
    pass


class TestSuspect(SuspectScenarios):
    pass
