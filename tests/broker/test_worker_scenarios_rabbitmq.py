"""The worker's promises on RabbitMQ, with real Lua."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.register_assert_rewrite("harness.worker_scenarios")

from harness.worker_scenarios import (  # noqa: E402 - only now its asserts can speak
    AheadScenarios,
    ConcurrencyScenarios,
    DeliveryScenarios,
    DrainScenarios,
    PermissionScenarios,
    PublishScenarios,
    SuspectScenarios,
)
from harness.worker_stage import Stage  # noqa: E402
from lunaq_runtime.brokers.amqp import AmqpBroker  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from harness.broker import Broker


@pytest.fixture
async def stage(rabbitmq: Broker, vhost: str) -> AsyncIterator[Stage]:
    """A stage on a virtual host of the test's own."""
    stage = Stage(lambda: AmqpBroker(rabbitmq.uri(vhost), reconnect_delay=0.1))
    await stage.open()
    yield stage
    await stage.close()


class TestDelivery(DeliveryScenarios):
    pass


class TestPublish(PublishScenarios):
    pass


class TestAhead(AheadScenarios):
    pass


class TestConcurrency(ConcurrencyScenarios):
    pass


class TestDrain(DrainScenarios):
    pass


class TestPermission(PermissionScenarios):
    pass


class TestSuspect(SuspectScenarios):
    pass
