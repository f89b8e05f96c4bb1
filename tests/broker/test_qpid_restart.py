"""That a retry waits safely on Qpid Broker-J's files: restarted in the middle, it loses and repeats none."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from harness.qpid import OwnQpid
from harness.waiting import eventually
from lunaq_runtime.brokers.amqp import AmqpBroker
from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.entries.model import Queue, Retry
from lunaq_runtime.ids import Id
from lunaq_runtime.message import PERSISTENT, Delivery, Outgoing, Properties
from lunaq_runtime.topology import topology_of

if TYPE_CHECKING:
    from collections.abc import Iterator

NUMBER = 50
EMAILS = Queue(
    id=Id("app", "emails"),
    driver=Id("app", "mq"),
    queue_name="app:emails",
    type="classic",
    retry=Retry(3, (100, 4000)),
)


@pytest.fixture(name="qpid")
def _qpid() -> Iterator[OwnQpid]:
    qpid = OwnQpid()
    try:
        qpid.start()
        yield qpid
    finally:
        qpid.stop()


async def test_retries_that_wait_and_retries_that_are_moved_survive_a_restart(qpid: OwnQpid):
    broker = AmqpBroker(qpid.uri(qpid.new_vhost("DERBY")), reconnect_delay=0.1, reconnect_max_delay=1.0)
    await broker.connect()
    await broker.declare(topology_of(EMAILS))
    properties = Properties(delivery_mode=PERSISTENT)
    sent = [(key, b"%s-%02d" % (key.encode(), n)) for n in range(NUMBER) for key in ("100", "4000", "dead")]
    calls = (broker.publish(Outgoing("app:emails.retry", key, body, properties)) for key, body in sent)
    await asyncio.gather(*calls)
    # In this thread: the kernel ends the broker with the thread that started it.
    qpid.restart()
    got: dict[str, list[Delivery]] = {"app:emails": [], "app:emails.dead": []}

    async def consuming() -> bool:
        for queue, deliveries in got.items():
            await broker.consume(queue, prefetch=0, on_deliveries=deliveries.extend)
        return True

    await eventually(consuming, "the connection to come back", 60, retry_on=(BrokerError,))

    async def all_there() -> bool:
        return sum(map(len, got.values())) >= len(sent)

    await eventually(all_there, "every message to come out", 60)
    wanted = sorted(body for _, body in sent)
    assert sorted(one.body for deliveries in got.values() for one in deliveries) == wanted
    assert len(got["app:emails.dead"]) == NUMBER
    await broker.close()
