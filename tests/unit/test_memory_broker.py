"""What the memory broker has beyond the conformance suite: its clock, its looks inside, its faults."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from typing import TYPE_CHECKING, Any

import pytest

from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.brokers.memory import MemoryBroker, MemoryServer
from lunaq_runtime.entries.model import Queue, Retry
from lunaq_runtime.ids import Id
from lunaq_runtime.message import Delivery, Outgoing, Properties
from lunaq_runtime.topology import QueueDecl, Topology, topology_of

if TYPE_CHECKING:
    from collections.abc import Callable

MINUTE = 60_000
EMAILS = Queue(
    id=Id("app", "emails"), driver=Id("app", "mq"), queue_name="app:emails", retry=Retry(3, (MINUTE,))
)


class FakeClock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self._calls: list[tuple[float, int, list[Any]]] = []
        self._order = itertools.count()

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], object]) -> FakeTimer:
        cell: list[Any] = [callback]
        heapq.heappush(self._calls, (self.now + delay, next(self._order), cell))
        return FakeTimer(cell)

    async def pass_(self, seconds: float) -> None:
        until = self.now + seconds
        while self._calls and self._calls[0][0] <= until:
            self.now, _, cell = heapq.heappop(self._calls)
            for callback in cell:
                callback()
            await turns()
        self.now = until


class FakeTimer:
    def __init__(self, cell: list[Any]) -> None:
        self._cell = cell

    def cancel(self) -> None:
        self._cell.clear()


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def broker(clock: FakeClock) -> MemoryBroker:
    broker = MemoryBroker(clock=clock)
    await broker.connect()
    await broker.declare(topology_of(EMAILS))
    return broker


def message(body: bytes = b"x", exchange: str = "app:emails.x", key: str = "") -> Outgoing:
    return Outgoing(exchange, key, body, Properties(headers={"n": 1}))


async def test_a_delayed_retry_follows_the_given_clock(broker: MemoryBroker, clock: FakeClock):
    await broker.publish(message(exchange="app:emails.retry", key=str(MINUTE)))
    await clock.pass_(59)
    assert broker.messages("app:emails") == []
    await clock.pass_(1)
    assert [body for body, _ in broker.messages("app:emails")] == [b"x"]


async def test_looking_at_messages_takes_none_and_changes_none(broker: MemoryBroker):
    await broker.publish(message())
    ((_, properties),) = broker.messages("app:emails")
    properties.headers["n"] = 2
    assert broker.messages("app:emails")[0][1].headers == {"n": 1}
    assert (await broker.queue_info("app:emails")).ready == 1
    with pytest.raises(BrokerError):
        broker.messages("nowhere")


async def test_only_what_was_taken_counts_as_published(broker: MemoryBroker):
    await broker.publish(message())
    for refused in (message(exchange="nobody"), message(exchange="app:emails.retry", key="1")):
        with pytest.raises(BrokerError):
            await broker.publish(refused)
    assert broker.published == 1


async def test_an_at_least_once_dead_letter_waits_for_a_full_target(broker: MemoryBroker, clock: FakeClock):
    target = {"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"}
    source = {
        "x-queue-type": "quorum",
        "x-message-ttl": 1000,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "target",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    await broker.declare(Topology(queues=(QueueDecl("target", target), QueueDecl("source", source))))
    for body in (b"1", b"2"):
        await broker.publish(message(body, "", "source"))
    await clock.pass_(30)
    assert [body for body, _ in broker.messages("target")] == [b"1"]
    got: list[Delivery] = []
    subscription = await broker.consume("target", prefetch=1, on_deliveries=got.extend)
    await turns()
    subscription.settle(ack=got)
    await clock.pass_(30)
    assert [delivery.body for delivery in got] == [b"1", b"2"]


async def test_a_dead_letter_without_the_strategy_is_lost_at_a_full_target(
    broker: MemoryBroker, clock: FakeClock
):
    target = {"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"}
    source = {"x-message-ttl": 1000, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "target"}
    await broker.declare(Topology(queues=(QueueDecl("target", target), QueueDecl("source", source))))
    for body in (b"1", b"2"):
        await broker.publish(message(body, "", "source"))
    await clock.pass_(30)
    await broker.delete_queue("source")
    got: list[Delivery] = []
    subscription = await broker.consume("target", prefetch=1, on_deliveries=got.extend)
    await turns()
    subscription.settle(ack=got)
    await clock.pass_(600)
    assert [delivery.body for delivery in got] == [b"1"]


async def test_a_queue_without_overflow_drops_its_oldest_as_rabbitmq_does(broker: MemoryBroker):
    await broker.declare(Topology(queues=(QueueDecl("short", {"x-max-length": 2}),)))
    for body in (b"1", b"2", b"3"):
        await broker.publish(message(body, "", "short"))
    assert [body for body, _ in broker.messages("short")] == [b"2", b"3"]


async def test_an_unused_queue_expires_and_a_used_one_does_not(broker: MemoryBroker, clock: FakeClock):
    await broker.declare(Topology(queues=(QueueDecl("brief", {"x-expires": 10_000}),)))
    subscription = await broker.consume("brief", prefetch=1, on_deliveries=lambda _batch: None)
    await clock.pass_(60)
    assert (await broker.queue_info("brief")).consumers == 1
    await subscription.close()
    await clock.pass_(9)
    await broker.queue_info("brief")
    await clock.pass_(1)
    with pytest.raises(BrokerError):
        await broker.queue_info("brief")


async def test_an_auto_delete_queue_goes_with_its_last_consumer(broker: MemoryBroker):
    await broker.declare(Topology(queues=(QueueDecl("mine", {}, durable=False, auto_delete=True),)))
    subscription = await broker.consume("mine", prefetch=1, on_deliveries=lambda _batch: None)
    await subscription.close()
    with pytest.raises(BrokerError):
        await broker.queue_info("mine")


async def test_an_interrupted_connection_redelivers_as_a_new_generation(broker: MemoryBroker):
    got: list[Delivery] = []
    subscription = await broker.consume("app:emails", prefetch=5, on_deliveries=got.extend)
    await broker.publish(message())
    await turns()
    broker.interrupt()
    await turns()
    first, second = got
    assert second.redelivered
    assert second.generation > first.generation
    subscription.settle(ack=[first])
    await subscription.close()
    assert (await broker.queue_info("app:emails")).ready == 1


async def test_connections_to_one_server_share_its_queues():
    server = MemoryServer()
    one, two = MemoryBroker(server), MemoryBroker(server)
    await one.connect()
    await two.connect()
    await one.declare(topology_of(EMAILS))
    await two.publish(message())
    assert len(one.messages("app:emails")) == 1
    await one.close()
    assert two.connected
    assert len(two.messages("app:emails")) == 1


async def test_publishing_before_connecting_is_refused():
    with pytest.raises(BrokerError) as error:
        await MemoryBroker().publish(message())
    assert error.value.reason == "connection"
