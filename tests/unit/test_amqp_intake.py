"""A consumer's channel waits with its end until the broker has had time to heed what was settled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from lunaq_runtime.brokers.amqp.intake import STASH, Intake
from lunaq_runtime.message import Delivery, Properties

if TYPE_CHECKING:
    from collections.abc import Callable


class FakeTap:
    """A socket that takes everything."""

    def __init__(self) -> None:
        self.writable = True
        self.on_change: list[Callable[[], None]] = []
        self.written: list[bytes] = []

    def consume(self, _channel: int, _listener: Any) -> None:
        return

    def write(self, frames: bytes, *, answer: bool) -> None:
        assert not answer
        self.written.append(frames)


def settled(count: int) -> Intake:
    """Make an intake that has just acked `count` deliveries, each with a frame of its own."""
    tap: Any = FakeTap()
    intake = Intake(tap, 1, "q", 1, 10, lambda _deliveries: None)
    intake.begin()
    intake._settlements.delivered = count
    deliveries = [Delivery("q", tag + 1, b"", Properties(), generation=1) for tag in range(count)]
    for delivery in reversed(deliveries):
        intake.settle([delivery], [])
    assert len(tap.written) == count
    return intake


async def test_after_many_settlements_a_close_waits_for_the_broker_to_apply_them() -> None:
    intake = settled(STASH + 1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(intake.said(5), 0.05)


async def test_after_few_settlements_a_close_goes_on_at_once() -> None:
    intake = settled(STASH)
    await asyncio.wait_for(asyncio.ensure_future(intake.said(5)), 0.9)
