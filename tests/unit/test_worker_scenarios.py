"""The worker's promises on the memory broker, with real Lua."""

from __future__ import annotations

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
