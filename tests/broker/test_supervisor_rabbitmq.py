"""The connection's supervisor on a real RabbitMQ: what is lost comes back, nothing beside it is touched."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from pamqp import commands, frame

from harness.waiting import eventually
from lunaq_runtime.brokers.amqp import AmqpBroker
from lunaq_runtime.message import PERSISTENT, Delivery, Outgoing, Properties
from lunaq_runtime.topology import QueueDecl, Topology

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from harness.broker import Broker as Server
    from lunaq_runtime.brokers.amqp.subscription import AmqpSubscription


async def open_broker(uri: str, **options: Any) -> AmqpBroker:
    broker = AmqpBroker(uri, **{"reconnect_delay": 0.05, "reconnect_max_delay": 0.5} | options)
    await broker.connect()
    return broker


async def until(condition: Callable[[], bool], what: str) -> None:
    async def asked() -> bool:
        return condition()

    await eventually(asked, what, 90)


async def put(broker: AmqpBroker, queue: str, body: bytes) -> None:
    await broker.publish(Outgoing("", queue, body, Properties(delivery_mode=PERSISTENT)))


def settle_badly(broker: AmqpBroker, subscription: AmqpSubscription) -> None:
    """Ack what was never delivered, as a defect of ours would; nothing public lets it happen."""
    assert broker._link is not None
    assert subscription._channel is not None
    wrong = commands.Basic.Ack(delivery_tag=4711, multiple=False)
    broker._link.tap.write(frame.marshal(wrong, subscription._channel.number))


async def test_a_bad_settle_costs_its_own_channel_and_no_message(
    rabbitmq: Server, vhost: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.WARNING)
    broker = await open_broker(rabbitmq.uri(vhost))
    await broker.declare(Topology(queues=(QueueDecl("here"), QueueDecl("beside"))))
    got: list[Delivery] = []
    other: list[Delivery] = []
    subscription = await broker.consume("here", prefetch=10, on_deliveries=got.extend)
    beside = await broker.consume("beside", prefetch=10, on_deliveries=other.extend)
    await put(broker, "here", b"1")
    await put(broker, "beside", b"other")
    await until(lambda: len(got) == len(other) == 1, "the first deliveries")
    settle_badly(broker, subscription)
    await until(lambda: len(got) == 2, "the message to come back")
    first, again = got
    assert (again.body, again.redelivered) == (b"1", True)
    assert again.generation > first.generation
    assert not subscription.alive(first)
    subscription.settle(ack=[first])
    subscription.settle(ack=[again])
    assert beside.alive(other[0])
    beside.settle(ack=other)
    assert broker.reconnects == 0
    await broker.close()
    check = await open_broker(rabbitmq.uri(vhost))
    assert [(await check.queue_info(name)).ready for name in ("here", "beside")] == [0, 0]
    await check.close()
    assert "consuming of queue 'here' was interrupted" in caplog.text


async def test_a_virtual_host_that_is_deleted_is_named_and_waited_for(
    rabbitmq: Server, caplog: pytest.LogCaptureFixture
):
    vhost = await asyncio.to_thread(rabbitmq.new_vhost)
    broker = await open_broker(rabbitmq.uri(vhost))
    queue = Topology(queues=(QueueDecl("here"),))
    await broker.declare(queue)
    got: list[Delivery] = []
    subscription = await broker.consume("here", prefetch=1, on_deliveries=got.extend)
    await asyncio.to_thread(rabbitmq.delete_vhost, vhost)
    why = f"virtual host '{vhost}': the virtual host does not exist, or the user has no permission on it"
    await until(lambda: why in caplog.text, "the missing virtual host to be named")
    assert not subscription.active
    await asyncio.to_thread(rabbitmq.api, "PUT", f"/vhosts/{vhost}")
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    await asyncio.to_thread(rabbitmq.api, "PUT", f"/permissions/{vhost}/{rabbitmq.username}", everything)
    try:
        await until(lambda: broker.connected, "the connection to come back")
        await broker.declare(queue)
        await put(broker, "here", b"back")
        await until(lambda: [one.body for one in got] == [b"back"], "a delivery in the new virtual host")
    finally:
        await broker.close()
        await asyncio.to_thread(rabbitmq.delete_vhost, vhost)
