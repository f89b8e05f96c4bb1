"""That RabbitMQ takes every argument `topology_of` may write, with the type it writes it in."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from lunaq_runtime.brokers.amqp import AmqpBroker
from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.entries.model import Queue, Retry
from lunaq_runtime.ids import Id
from lunaq_runtime.topology import QueueDecl, Topology, deletion_order, topology_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from harness.broker import Broker as Server

FULL = Queue(
    id=Id("app", "full"),
    driver=Id("app", "mq"),
    queue_name="app:full",
    message_ttl_ms=3_600_000,
    queue_expiry_ms=7_200_000,
    max_length=100_000,
    max_length_bytes=3_000_000_000,
    single_active_consumer=True,
    retry=Retry(5, (0, 1, 86_400_000)),
    owner="cluster/app/full",
)
CLASSIC = replace(
    FULL,
    id=Id("app", "classic"),
    queue_name="app:classic",
    type="classic",
    max_priority=9,
    retry=Retry(1, ()),
)
PLAIN = Queue(id=Id("app", "plain"), driver=Id("app", "mq"), queue_name="app:plain")
TRANSIENT = replace(
    PLAIN, id=Id("app", "gone"), queue_name="app:gone", durable=False, auto_delete=True, retry=Retry(1, ())
)


@pytest.fixture
async def broker(rabbitmq: Server, vhost: str) -> AsyncIterator[AmqpBroker]:
    broker = AmqpBroker(rabbitmq.uri(vhost))
    await broker.connect()
    yield broker
    await broker.close()


async def told(rabbitmq: Server, vhost: str, kind: str, name: str) -> dict[str, Any]:
    path = f"/{kind}/{vhost}/{quote(name, safe='')}"
    answer: dict[str, Any] = await asyncio.to_thread(rabbitmq.api, "GET", path)
    return answer


@pytest.mark.parametrize("queue", [PLAIN, FULL, CLASSIC, TRANSIENT], ids=lambda queue: queue.id.name)
async def test_rabbitmq_holds_what_the_topology_says(
    broker: AmqpBroker, rabbitmq: Server, vhost: str, queue: Queue
):
    topology = topology_of(queue)
    await broker.declare(topology)
    await broker.declare(topology)
    for decl in topology.queues:
        there = await told(rabbitmq, vhost, "queues", decl.name)
        assert there["arguments"] == decl.arguments
        assert (there["durable"], there["auto_delete"]) == (decl.durable, decl.auto_delete)
    for exchange in topology.exchanges:
        there = await told(rabbitmq, vhost, "exchanges", exchange.name)
        assert (there["type"], there["durable"]) == (exchange.type, True)
        assert there["arguments"] == exchange.arguments


async def test_everything_can_be_deleted_in_the_order_given(broker: AmqpBroker):
    topology = topology_of(FULL)
    await broker.declare(topology)
    for kind, name in deletion_order(topology):
        await (broker.delete_queue if kind == "queue" else broker.delete_exchange)(name)
    for exchange in topology.exchanges:
        assert not await broker.exchange_exists(exchange.name)
    for queue in topology.queues:
        with pytest.raises(BrokerError):
            await broker.queue_info(queue.name)


@pytest.mark.parametrize(
    "changed",
    [
        replace(PLAIN, type="classic"),
        replace(PLAIN, message_ttl_ms=1),
        replace(PLAIN, max_length=1),
        replace(PLAIN, dead_letter=Id("app", "other"), dead_letter_queue_name="app:plain.retry.1000"),
        replace(PLAIN, single_active_consumer=True),
    ],
    ids=["type", "ttl", "length", "dead letter", "single active consumer"],
)
async def test_drift_is_found_for_every_argument_that_can_change(broker: AmqpBroker, changed: Queue):
    await broker.declare(topology_of(PLAIN))
    with pytest.raises(BrokerError, match="app:plain") as error:
        await broker.declare(topology_of(changed))
    assert error.value.reason == "immutable_arguments"


async def test_an_argument_the_broker_does_not_take_is_told_apart_from_drift(broker: AmqpBroker):
    refused = QueueDecl("odd", {"x-queue-type": "quorum", "x-message-ttl": -1})
    with pytest.raises(BrokerError, match="x-message-ttl") as error:
        await broker.declare(Topology(queues=(refused,)))
    assert error.value.reason == "invalid_arguments"


async def test_another_owner_of_the_exchange_is_no_drift(broker: AmqpBroker, rabbitmq: Server, vhost: str):
    """RabbitMQ does not compare unknown exchange arguments: whose it is must be read, not declared."""
    await broker.declare(topology_of(replace(PLAIN, owner="one")))
    await broker.declare(topology_of(replace(PLAIN, owner="two")))
    there = await told(rabbitmq, vhost, "exchanges", "app:plain.x")
    assert there["arguments"] == {"x-lunaq-owner": "one"}
