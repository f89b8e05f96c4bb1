"""Tasks that go on after errors end when they are cancelled, even where the library swallows that."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from lunaq_runtime.brokers.amqp import subscription as subscription_module
from lunaq_runtime.brokers.amqp import watch
from lunaq_runtime.brokers.amqp.broker import AmqpBroker
from lunaq_runtime.brokers.amqp.subscription import AmqpSubscription
from lunaq_runtime.brokers.base import BrokerError, QueueInfo

if TYPE_CHECKING:
    from collections.abc import Iterator


class Swallower:
    """Stands for an operation that aiormq ends as if nobody had cancelled it."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.entered = asyncio.Event()

    async def __call__(self, *_: Any) -> QueueInfo:
        self.entered.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            if self.error:
                raise self.error from None
        return QueueInfo(0, 1)


class Links:
    async def wait_link(self) -> Any:
        return None

    def backoff(self) -> Iterator[float]:
        while True:
            yield 3600.0


async def ends(task: asyncio.Task[Any], swallower: Swallower) -> None:
    async with asyncio.timeout(60):
        await swallower.entered.wait()
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=10)
    assert done, "it goes on after it was cancelled"
    assert task.cancelled()


REFUSAL = BrokerError("connection", "the channel was closed")


@pytest.fixture(params=[REFUSAL, None], ids=["refuses", "answers"])
async def swallower(request: pytest.FixtureRequest) -> Swallower:
    return Swallower(request.param)


def consumer() -> AmqpSubscription:
    return AmqpSubscription("q", lambda _: None, prefetch=1, consumer_tag="", exclusive=False, no_ack=False)


async def test_the_watch_over_consumers_ends(swallower: Swallower, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(watch, "queue_info", swallower)
    monkeypatch.setattr(watch, "PERIOD", 0.0)
    watched = consumer()
    watched._active = True
    task = asyncio.create_task(watch.watch_consumers(Links(), [watched]))
    await swallower.entered.wait()
    monkeypatch.setattr(watch, "PERIOD", 3600.0)
    await ends(task, swallower)


async def test_the_keeper_of_a_consumer_ends(swallower: Swallower, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(subscription_module, "queue_info", swallower)
    lost = consumer()

    async def opened(_link: Any) -> None:
        lost._active = True

    monkeypatch.setattr(lost, "_open", opened)
    lost._ended.set()
    await ends(asyncio.create_task(lost._keep(Links())), swallower)


@pytest.mark.parametrize("swallower", [REFUSAL, None, Exception()], indirect=True)  # the last is aiormq's
async def test_the_keeper_of_a_connection_ends(swallower: Swallower, monkeypatch: pytest.MonkeyPatch):
    broker = AmqpBroker("amqp://127.0.0.1:1")

    class Lost:
        lost = asyncio.Event()

        async def close(self) -> None:
            return

    Lost.lost.set()
    broker._link = Lost()  # type: ignore[assignment]
    monkeypatch.setattr(broker, "backoff", lambda: iter([0.0, *[3600.0] * 9]))
    monkeypatch.setattr(broker, "_open", swallower)
    await ends(asyncio.create_task(broker._keep()), swallower)
