"""One suite for every broker we claim: what worker and operator rely on.

What a broker lacks is data (`lunaq_runtime.brokers.features`): a test that `needs` it is not collected for
that broker, and another says what happens there instead. Any other difference is a defect.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from harness.broker import Broker as Server
from harness.fleet import Fleet
from harness.waiting import eventually
from lunaq_runtime.brokers import features
from lunaq_runtime.brokers.amqp import AmqpBroker, watch
from lunaq_runtime.brokers.base import Broker, BrokerError, QueueInfo, Subscription
from lunaq_runtime.brokers.features import Feature
from lunaq_runtime.brokers.memory import MemoryBroker, MemoryServer
from lunaq_runtime.entries.model import Queue, Retry
from lunaq_runtime.ids import Id
from lunaq_runtime.message import PERSISTENT, Delivery, Outgoing, Properties
from lunaq_runtime.topology import Binding, ExchangeDecl, QueueDecl, Topology, topology_of

if TYPE_CHECKING:
    from harness.qpid import Qpid

EMAILS = Queue(
    id=Id("app", "emails"), driver=Id("app", "mq"), queue_name="app:emails", retry=Retry(3, (200, 500))
)
NAME, EXCHANGE, RETRY, DEAD = "app:emails", "app:emails.x", "app:emails.retry", "app:emails.dead"

Connect = Callable[[], Awaitable[Broker]]
Place = tuple[Server, str]


BROKERS = {
    "memory": features.MEMORY,
    "rabbitmq310": features.RABBITMQ,
    "rabbitmq40": features.RABBITMQ,
    "rabbitmq43": features.RABBITMQ,
    "qpid": features.QPID,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test on the brokers that have what its marks say, and on those alone it is `on`."""
    if "connect" not in metafunc.fixturenames:
        return
    needed = {one for mark in metafunc.definition.iter_markers("needs") for one in mark.args}
    only = {one for mark in metafunc.definition.iter_markers("on") for one in mark.args} or set(BROKERS)
    able = [name for name, product in BROKERS.items() if not product.missing & needed]
    metafunc.parametrize("connect", [name for name in able if name in only], indirect=True)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Place | None]:
    """Where `connect` leads to: a broker, and a virtual host of the test's own on it; None is memory."""
    name = request.node.callspec.params["connect"]
    if name == "memory":
        yield None
        return
    server = request.getfixturevalue("rabbitmq" if name == "rabbitmq310" else "fleet")
    server = server[name] if name in Fleet.NAMES else server
    vhost = server.new_vhost()
    yield server, vhost
    server.delete_vhost(vhost)


@pytest.fixture
async def connect(request: pytest.FixtureRequest, place: Place | None) -> AsyncIterator[Connect]:
    """Open connections to one broker of the test's own; all are closed afterwards."""
    assert request.param in BROKERS
    opened: list[Broker] = []
    if place is None:
        memory = MemoryServer()

        def make() -> Broker:
            return MemoryBroker(memory)
    else:
        server, vhost = place
        uri = server.uri(vhost)

        def make() -> Broker:
            return AmqpBroker(uri, connection_name="conformance", reconnect_delay=0.1)

    async def connect() -> Broker:
        broker = make()
        await broker.connect()
        opened.append(broker)
        return broker

    yield connect
    for broker in opened:
        await broker.close()


def emails(broker: Broker, **changes: Any) -> Queue:
    """Describe the queue of these tests as this broker can have it."""
    kind = "quorum" if has(broker, Feature.QUORUM) else "classic"
    return replace(EMAILS, **{"type": kind} | changes)


def has(broker: Broker, feature: Feature) -> bool:
    return features.product_of(broker.server.product).has(feature)


@pytest.fixture
async def broker(connect: Connect) -> Broker:
    broker = await connect()
    await broker.declare(topology_of(emails(broker)))
    return broker


def message(body: bytes = b"x", *, exchange: str = EXCHANGE, key: str = "", **properties: Any) -> Outgoing:
    return Outgoing(exchange, key, body, Properties(**{"delivery_mode": PERSISTENT} | properties))


@dataclass
class Inbox:
    """What a subscription delivered, and the batches it came in."""

    batches: list[list[Delivery]] = field(default_factory=list)

    @property
    def deliveries(self) -> list[Delivery]:
        return [delivery for batch in self.batches for delivery in batch]

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.body for delivery in self.deliveries]

    async def have(self, number: int, timeout: float = 30) -> list[Delivery]:  # noqa: ASYNC109
        async def enough() -> bool:
            return len(self.deliveries) >= number

        await eventually(enough, f"{number} deliveries", timeout)
        return self.deliveries


async def consume(
    broker: Broker, queue: str = NAME, prefetch: int = 10, **options: Any
) -> tuple[Subscription, Inbox]:
    inbox = Inbox()
    subscription = await broker.consume(
        queue, prefetch=prefetch, on_deliveries=inbox.batches.append, **options
    )
    return subscription, inbox


async def ready(broker: Broker, queue: str, number: int) -> None:
    async def so_many() -> bool:
        return (await broker.queue_info(queue)).ready == number

    await eventually(so_many, f"{number} messages ready in {queue}")


async def drained(broker: Broker, queue: str, number: int) -> list[Delivery]:
    """Consume and ack `number` messages."""
    subscription, inbox = await consume(broker, queue, prefetch=0)
    deliveries = await inbox.have(number)
    subscription.settle(ack=deliveries)
    await subscription.close()
    return deliveries


def reason(error: pytest.ExceptionInfo[BrokerError]) -> str:
    return error.value.reason


# Publishing, consuming, settling


async def test_what_is_published_is_delivered_with_where_it_came_from(broker: Broker):
    await broker.publish(message(b"hello", message_id="m-1"))
    _, inbox = await consume(broker)
    (delivery,) = await inbox.have(1)
    assert (delivery.body, delivery.queue, delivery.exchange, delivery.routing_key) == (
        b"hello",
        NAME,
        EXCHANGE,
        "",
    )
    assert delivery.properties.message_id == "m-1"
    assert delivery.redelivered is False
    assert delivery.generation >= 1


async def test_acked_messages_are_gone_when_the_connection_is(broker: Broker, connect: Connect):
    for number in range(5):
        await broker.publish(message(b"%d" % number))
    subscription, inbox = await consume(broker)
    deliveries = await inbox.have(5)
    subscription.settle(ack=deliveries[:2])
    subscription.settle(ack=deliveries[3:])
    await broker.close()
    other = await connect()
    await ready(other, NAME, 1)
    (left,) = await drained(other, NAME, 1)
    assert (left.body, left.redelivered) == (b"2", True)


async def test_acks_in_any_order_settle_exactly_what_they_name(broker: Broker, connect: Connect):
    for number in range(12):
        await broker.publish(message(b"%02d" % number))
    subscription, inbox = await consume(broker, prefetch=20)
    deliveries = await inbox.have(12)
    for chunk in ((11, 3), (0, 1, 2), (5, 4), (7,)):
        subscription.settle(ack=[deliveries[index] for index in chunk])
    await broker.close()
    other = await connect()
    await ready(other, NAME, 4)
    assert sorted(item.body for item in await drained(other, NAME, 4)) == [b"06", b"08", b"09", b"10"]


async def test_a_thousand_acks_at_once_arrive_before_the_close(broker: Broker, connect: Connect):
    await asyncio.gather(*(broker.publish(message(b"%d" % number)) for number in range(1000)))
    subscription, inbox = await consume(broker, prefetch=0)
    deliveries = await inbox.have(1000)
    for delivery in reversed(deliveries):
        subscription.settle(ack=[delivery])
    await subscription.close()
    await broker.close()
    # The broker may be a moment behind with its counts, but nothing comes back.
    await ready(await connect(), NAME, 0)


async def test_deliveries_keep_the_order_of_publishing(broker: Broker):
    for number in range(200):
        await broker.publish(message(b"%d" % number))
    _, inbox = await consume(broker, prefetch=0)
    await inbox.have(200)
    assert inbox.bodies == [b"%d" % number for number in range(200)]
    assert all(inbox.batches)
    assert len(inbox.batches) < 200, "nothing was handed over together"


async def test_a_requeued_message_comes_back_as_redelivered(broker: Broker):
    await broker.publish(message(b"again"))
    subscription, inbox = await consume(broker)
    (first,) = await inbox.have(1)
    assert "x-delivery-count" not in first.properties.headers
    subscription.settle(requeue=[first])
    second = (await inbox.have(2))[1]
    assert (second.body, second.redelivered) == (b"again", True)


@pytest.mark.needs(Feature.DELIVERY_COUNT)
async def test_a_message_whose_consumers_die_is_counted_and_at_last_dead_lettered_by_the_broker(
    broker: Broker, connect: Connect
):
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": 4}
    dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": DEAD}
    await broker.declare(Topology(queues=(QueueDecl("limited", arguments | dead),)))
    await broker.publish(message(b"killer", exchange="", key="limited"))
    counts = []
    for _ in range(5):
        victim = await connect()
        _, inbox = await consume(victim, "limited")
        (delivery,) = await inbox.have(1)
        counts.append(delivery.properties.headers.get("x-delivery-count"))
        await victim.close()
    assert counts == [None, 1, 2, 3, 4]
    (delivery,) = await drained(broker, DEAD, 1)
    assert delivery.properties.headers["x-first-death-reason"] == "delivery_limit"


async def test_requeued_messages_come_before_those_never_delivered(broker: Broker):
    for number in range(6):
        await broker.publish(message(b"%d" % number))
    subscription, inbox = await consume(broker, prefetch=3)
    await inbox.have(3)
    await subscription.cancel()
    subscription.settle(requeue=inbox.deliveries)
    await subscription.close()
    assert [item.body for item in await drained(broker, NAME, 6)] == [b"0", b"1", b"2", b"3", b"4", b"5"]


async def test_a_batch_may_ack_and_requeue_at_once(broker: Broker):
    for number in range(4):
        await broker.publish(message(b"%d" % number))
    subscription, inbox = await consume(broker, prefetch=4)
    deliveries = await inbox.have(4)
    await subscription.cancel()
    subscription.settle(ack=[deliveries[0], deliveries[2], deliveries[3]], requeue=[deliveries[1]])
    await subscription.close()
    await ready(broker, NAME, 1)
    assert [item.body for item in await drained(broker, NAME, 1)] == [b"1"]


async def test_settling_twice_harms_nobody(broker: Broker):
    await broker.publish(message(b"1"))
    subscription, inbox = await consume(broker)
    (first,) = await inbox.have(1)
    subscription.settle(ack=[first])
    subscription.settle(ack=[first])
    subscription.settle(requeue=[first])
    await broker.publish(message(b"2"))
    assert (await inbox.have(2))[1].body == b"2"
    assert subscription.active


@pytest.mark.needs(Feature.READY_COUNT)
async def test_no_more_than_the_prefetch_is_unsettled(broker: Broker):
    for number in range(10):
        await broker.publish(message(b"%d" % number))
    subscription, inbox = await consume(broker, prefetch=3)
    await inbox.have(3)
    await ready(broker, NAME, 7)
    assert len(inbox.deliveries) == 3
    subscription.settle(ack=inbox.deliveries[:1])
    await inbox.have(4)
    await ready(broker, NAME, 6)
    assert len(inbox.deliveries) == 4


async def test_without_acks_the_prefetch_does_not_hold_anything_back(broker: Broker, connect: Connect):
    for number in range(5):
        await broker.publish(message(b"%d" % number))
    subscription, inbox = await consume(broker, prefetch=1, no_ack=True)
    subscription.settle(ack=await inbox.have(5))
    await broker.publish(message(b"5"))
    await inbox.have(6)
    await broker.close()
    assert (await (await connect()).queue_info(NAME)).ready == 0


async def test_two_consumers_share_the_messages(broker: Broker):
    _, one = await consume(broker, prefetch=5)
    _, two = await consume(broker, prefetch=5)
    for number in range(10):
        await broker.publish(message(b"%d" % number))
    await one.have(5)
    await two.have(5)
    assert sorted(one.bodies + two.bodies) == [b"%d" % number for number in range(10)]


@pytest.mark.needs(Feature.CLOSED_CHANNELS)
async def test_an_exclusive_consumer_keeps_others_away(broker: Broker):
    await broker.declare(Topology(queues=(QueueDecl("alone", {"x-queue-type": "classic"}),)))
    await consume(broker, "alone", exclusive=True)
    with pytest.raises(BrokerError) as error:
        await consume(broker, "alone")
    assert reason(error) == "access_refused"


async def test_consuming_a_missing_queue_says_so(broker: Broker):
    with pytest.raises(BrokerError, match="nowhere") as error:
        await consume(broker, "nowhere")
    assert reason(error) == "queue_not_found"


# Shutdown


async def test_after_cancel_what_was_delivered_can_be_settled_and_nothing_comes_back(
    broker: Broker, connect: Connect
):
    for number in range(20):
        await broker.publish(message(b"%d" % number))
    subscription, inbox = await consume(broker, prefetch=8)
    await inbox.have(8)
    await subscription.cancel()
    assert not subscription.active
    taken = list(inbox.deliveries)
    subscription.settle(ack=taken)
    await subscription.close()
    assert inbox.deliveries == taken
    other = await connect()
    await ready(other, NAME, 20 - len(taken))
    rest = await drained(other, NAME, 20 - len(taken))
    assert not any(item.redelivered for item in rest)
    assert [item.body for item in taken + rest] == [b"%d" % number for number in range(20)]


@pytest.mark.needs(Feature.READY_COUNT)
async def test_cancel_hands_over_all_that_arrived_before_it(connect: Connect):
    # Not a quorum queue: RabbitMQ 3.10 answers the cancel before the deliveries that are still on their way
    # within the broker, and itself puts those back as redelivered.
    broker = await connect()
    await broker.declare(topology_of(emails(broker, type="classic")))
    for number in range(500):
        await broker.publish(message(b"%d" % number))
    subscription, inbox = await consume(broker, prefetch=0)
    await subscription.cancel()
    left = 0

    async def all_accounted_for() -> bool:
        nonlocal left
        left = (await broker.queue_info(NAME)).ready
        return len(inbox.deliveries) + left == 500

    await eventually(all_accounted_for, "what was handed over and what is ready to be all there is")
    subscription.settle(ack=inbox.deliveries)
    await subscription.close()
    rest = await drained(broker, NAME, left) if left else []
    assert not any(item.redelivered for item in rest)


async def test_closing_gives_back_what_is_unsettled(broker: Broker):
    await broker.publish(message(b"back"))
    subscription, inbox = await consume(broker)
    await inbox.have(1)
    await subscription.close()
    (again,) = await drained(broker, NAME, 1)
    assert (again.body, again.redelivered) == (b"back", True)


async def test_a_closed_connection_refuses_and_says_why(broker: Broker):
    await broker.close()
    assert not broker.connected
    with pytest.raises(BrokerError) as error:
        await broker.publish(message())
    assert reason(error) == "closed"


async def test_a_callback_that_raises_costs_nobody_a_message(broker: Broker):
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context))
    seen: list[bytes] = []

    def fail_first(batch: list[Delivery]) -> None:
        seen.extend(delivery.body for delivery in batch)
        if len(seen) == 1:
            raise ValueError("a defect")

    await broker.consume(NAME, prefetch=10, on_deliveries=fail_first)
    await broker.publish(message(b"1"))

    async def failed() -> bool:
        return bool(failures)

    await eventually(failed, "the loop to hear of the defect")
    await broker.publish(message(b"2"))

    async def both() -> bool:
        return seen == [b"1", b"2"]

    await eventually(both, "the second message")


# Retry and dead letters


async def test_the_retry_exchange_returns_a_message_after_its_delay_unchanged(broker: Broker):
    _, inbox = await consume(broker)
    headers = {"attempts": 2, "x_error": "no", "nested": {"list": [1, "two"]}}
    loop = asyncio.get_running_loop()
    started = loop.time()
    await broker.publish(message(b"later", exchange=RETRY, key="200", headers=headers, message_id="m-7"))
    (delivery,) = await inbox.have(1)
    assert loop.time() - started >= 0.19
    assert (delivery.body, delivery.properties.message_id) == (b"later", "m-7")
    assert {key: delivery.properties.headers[key] for key in headers} == headers
    assert delivery.redelivered is False


@pytest.mark.needs(Feature.DEATHS)
async def test_a_message_that_comes_back_carries_where_it_waited(broker: Broker):
    await broker.publish(message(exchange=RETRY, key="200"))
    (delivery,) = await drained(broker, NAME, 1)
    (death,) = delivery.properties.headers["x-death"]
    assert (death["queue"], death["reason"], death["count"]) == (f"{NAME}.retry.200", "expired", 1)


async def test_the_dead_key_leads_to_the_dead_letter_queue(broker: Broker):
    await broker.publish(message(b"dead", exchange=RETRY, key="dead", headers={"attempts": 3}))
    (delivery,) = await drained(broker, DEAD, 1)
    assert (delivery.body, delivery.properties.headers["attempts"]) == (b"dead", 3)


async def test_a_named_dead_letter_queue_gets_the_dead_letters(broker: Broker):
    failed = emails(broker, id=Id("app", "failed"), queue_name="app:failed")
    source = emails(
        broker,
        id=Id("app", "source"),
        queue_name="app:source",
        dead_letter=failed.id,
        dead_letter_queue_name="app:failed",
        message_ttl_ms=50,
    )
    await broker.declare(topology_of(failed))
    await broker.declare(topology_of(source))
    await broker.publish(message(b"given up", exchange="app:source.retry", key="dead"))
    await broker.publish(message(b"expired", exchange="app:source.x"))
    assert {item.body for item in await drained(broker, "app:failed", 2)} == {b"given up", b"expired"}


async def test_an_expired_message_becomes_a_dead_letter(broker: Broker):
    short = emails(broker, id=Id("app", "short"), queue_name="app:short", message_ttl_ms=100)
    await broker.declare(topology_of(short))
    await broker.publish(message(b"old", exchange="app:short.x"))
    (delivery,) = await drained(broker, "app:short.dead", 1)
    assert delivery.body == b"old"
    assert (await broker.queue_info("app:short")).ready == 0


@pytest.mark.needs(Feature.EXPIRATION)
async def test_a_messages_own_expiration_counts_when_it_is_shorter(broker: Broker):
    await broker.publish(message(b"brief", expiration="50"))
    (delivery,) = await drained(broker, DEAD, 1)
    assert delivery.body == b"brief"
    assert delivery.properties.expiration is None


async def test_a_dead_letter_survives_more_looks_than_a_delivery_limit_allows(broker: Broker):
    await broker.publish(message(b"dead", exchange=RETRY, key="dead"))
    subscription, inbox = await consume(broker, DEAD)
    for looks in range(25):
        subscription.settle(requeue=[(await inbox.have(looks + 1))[looks]])
    assert (await inbox.have(26))[25].body == b"dead"


# Refusals


@pytest.mark.needs(Feature.UNROUTABLE)
async def test_a_message_no_queue_takes_is_an_error(broker: Broker):
    with pytest.raises(BrokerError, match="12345") as error:
        await broker.publish(message(exchange=RETRY, key="12345"))
    assert reason(error) == "unroutable"


@pytest.mark.needs(Feature.UNROUTABLE)
async def test_an_unroutable_message_is_told_from_routable_ones_in_flight(broker: Broker):
    keys = ["dead", "nothing"] * 50
    results = await asyncio.gather(
        *(
            broker.publish(message(b"%d" % number, exchange=RETRY, key=key, message_id=f"id-{number % 3}"))
            for number, key in enumerate(keys)
        ),
        return_exceptions=True,
    )
    told = [result.reason if isinstance(result, BrokerError) else result for result in results]
    assert told == [None, "unroutable"] * 50
    await ready(broker, DEAD, 50)


async def test_a_missing_exchange_is_an_error_and_harms_no_other_publish_in_flight(broker: Broker):
    await broker.publish(message(b"warm"))
    calls = [broker.publish(message(b"%d" % number)) for number in range(100)]
    calls[50:50] = [broker.publish(message(exchange=f"nobody-{number}")) for number in range(5)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    assert [error.reason for error in errors if isinstance(error, BrokerError)] == ["queue_not_found"] * 5
    assert len(errors) == 5
    await ready(broker, NAME, 101)


async def test_an_exchange_that_appears_later_is_found(broker: Broker):
    with pytest.raises(BrokerError) as error:
        await broker.publish(message(exchange="late"))
    assert reason(error) == "queue_not_found"
    await broker.declare(
        Topology(exchanges=(ExchangeDecl("late", "fanout"),), bindings=(Binding("late", NAME),))
    )
    await broker.publish(message(b"found", exchange="late"))
    await ready(broker, NAME, 1)


@pytest.mark.needs(Feature.SAFE_DELETE)
async def test_an_exchange_that_is_deleted_later_is_missed(broker: Broker):
    await broker.publish(message())
    await broker.publish(message())
    await broker.delete_exchange(EXCHANGE)
    assert not await broker.exchange_exists(EXCHANGE)
    for _ in range(2):
        with pytest.raises(BrokerError) as error:
            await broker.publish(message())
        assert reason(error) == "queue_not_found"
    await broker.publish(message(exchange=RETRY, key="dead"))


@pytest.mark.needs(Feature.LENGTHS)
async def test_a_full_queue_rejects_the_publisher_and_keeps_what_it_has(broker: Broker):
    small = emails(broker, id=Id("app", "small"), queue_name="app:small", max_length=3)
    await broker.declare(topology_of(small))
    taken = 0

    async def fill() -> None:
        nonlocal taken
        # A quorum queue may take a few more than its limit before it closes the door.
        for _ in range(50):
            await broker.publish(message(b"%d" % taken, exchange="app:small.x"))
            taken += 1

    with pytest.raises(BrokerError) as error:
        await fill()
    assert reason(error) == "nacked"
    assert taken >= 3
    assert [item.body for item in await drained(broker, "app:small", taken)] == [
        b"%d" % number for number in range(taken)
    ]


async def test_declaring_again_changes_nothing(broker: Broker):
    await broker.publish(message())
    await broker.declare(topology_of(emails(broker)))
    await broker.publish(message())
    await ready(broker, NAME, 2)


@pytest.mark.needs(Feature.DRIFT)
async def test_other_arguments_are_refused_with_both_values_and_nothing_is_lost(broker: Broker):
    await broker.publish(message())
    with pytest.raises(BrokerError, match=r"(?s)x-message-ttl.*app:emails.*5000.*(none|None)") as error:
        await broker.declare(topology_of(emails(broker, message_ttl_ms=5000)))
    assert reason(error) == "immutable_arguments"
    await broker.publish(message())
    await ready(broker, NAME, 2)


@pytest.mark.needs(Feature.CLOSED_CHANNELS)
async def test_another_exchange_type_is_refused(broker: Broker):
    with pytest.raises(BrokerError, match=r"direct.*fanout") as error:
        await broker.declare(Topology(exchanges=(ExchangeDecl(EXCHANGE, "direct"),)))
    assert reason(error) == "immutable_arguments"


async def test_binding_what_is_not_there_says_so(broker: Broker):
    with pytest.raises(BrokerError, match="nowhere") as error:
        await broker.declare(Topology(bindings=(Binding(EXCHANGE, "nowhere"),)))
    assert reason(error) == "queue_not_found"


# Asking and deleting


@pytest.mark.needs(Feature.READY_COUNT)
async def test_queue_info_counts_ready_messages_and_consumers(broker: Broker):
    assert await broker.queue_info(NAME) == QueueInfo(0, 0)
    for _ in range(3):
        await broker.publish(message())
    await ready(broker, NAME, 3)
    subscription, inbox = await consume(broker, prefetch=1)
    await inbox.have(1)

    async def told() -> bool:
        return await broker.queue_info(NAME) == QueueInfo(2, 1)

    await eventually(told, "two ready and one consumer")
    await subscription.close()


async def test_queue_info_of_a_missing_queue_says_so(broker: Broker):
    with pytest.raises(BrokerError, match="nowhere") as error:
        await broker.queue_info("nowhere")
    assert reason(error) == "queue_not_found"


@pytest.mark.needs(Feature.SAFE_DELETE)
async def test_deleting_is_idempotent(broker: Broker):
    for _ in range(2):
        await broker.delete_queue(NAME)
        await broker.delete_exchange(EXCHANGE)
    assert not await broker.exchange_exists(EXCHANGE)
    with pytest.raises(BrokerError):
        await broker.queue_info(NAME)


@pytest.mark.needs(Feature.SAFE_DELETE)
async def test_a_consumer_comes_back_when_its_queue_is_deleted_and_declared_again(broker: Broker):
    await broker.publish(message(b"lost with the queue"))
    subscription, inbox = await consume(broker)
    (old,) = await inbox.have(1)
    await broker.delete_queue(NAME)

    async def stopped() -> bool:
        return not subscription.active

    await eventually(stopped, "the subscription to notice")
    subscription.settle(ack=[old])

    async def declared() -> bool:
        await broker.declare(topology_of(emails(broker)))
        return True

    async def back() -> bool:
        return subscription.active and (await broker.queue_info(NAME)).consumers == 1

    # RabbitMQ 4.3 may close the connection while a quorum queue goes, and while it is made anew.
    await eventually(declared, "the queue to be declared again", retry_on=(BrokerError,))
    await eventually(back, "the subscription to come back", retry_on=(BrokerError,))
    await broker.publish(message(b"new"))
    new = (await inbox.have(2))[1]
    assert new.body == b"new"
    assert new.generation > old.generation
    subscription.settle(ack=[old])
    subscription.settle(ack=[new])
    await subscription.close()
    assert await broker.queue_info(NAME) == QueueInfo(0, 0)


# Publishing by callback


class Told:
    """What `publish_soon` told of each message: None, or the reason of a refusal."""

    def __init__(self) -> None:
        self.reasons: dict[str, list[str | None]] = {}

    def of(self, name: str) -> Callable[[BrokerError | None], None]:
        self.reasons[name] = []
        return lambda error: self.reasons[name].append(error.reason if error else None)

    async def all(self) -> dict[str, list[str | None]]:
        async def everything() -> bool:
            return all(self.reasons.values())

        await eventually(everything, "every callback")
        # A second call of any would come with the answer to a later publish at the latest.
        await asyncio.sleep(0)
        return self.reasons


async def test_a_publish_by_callback_is_told_of_once_and_never_during_the_call(broker: Broker):
    told = Told()
    for number in range(200):
        broker.publish_soon(message(b"%d" % number, message_id="same"), told.of(str(number)))
    assert not any(told.reasons.values())
    await told.all()
    await broker.publish(message(b"last"))
    assert set(map(tuple, told.reasons.values())) == {(None,)}
    _, inbox = await consume(broker, prefetch=0)
    await inbox.have(201)
    await broker.publish(message(b"after"))

    async def came() -> bool:
        return b"after" in inbox.bodies

    await eventually(came, "the message after them")
    assert sorted(inbox.bodies) == sorted([b"%d" % number for number in range(200)] + [b"last", b"after"])


async def test_publishes_by_callback_keep_their_order(broker: Broker):
    await broker.publish(message(b"0"))
    told = Told()
    for number in range(1, 300):
        broker.publish_soon(message(b"%d" % number), told.of(str(number)))
    await told.all()
    assert [item.body for item in await drained(broker, NAME, 300)] == [
        b"%d" % number for number in range(300)
    ]


@pytest.mark.needs(Feature.UNROUTABLE)
async def test_refusals_reach_the_callback_and_nobody_else(broker: Broker):
    await broker.publish(message(b"warm"))
    told = Told()
    for number in range(40):
        broker.publish_soon(message(b"%d" % number, message_id="same"), told.of(f"fine {number}"))
        broker.publish_soon(
            message(exchange=RETRY, key="12345", message_id="same"), told.of(f"unroutable {number}")
        )
        if number % 10 == 0:
            broker.publish_soon(message(exchange="nobody"), told.of(f"queue_not_found {number}"))
            broker.publish_soon(message(headers={"n": 2**63}), told.of(f"encode_failed {number}"))
    for name, reasons in (await told.all()).items():
        kind = name.partition(" ")[0]
        assert reasons == [None if kind == "fine" else kind], name
    await ready(broker, NAME, 41)


@pytest.mark.needs(Feature.LENGTHS)
async def test_a_full_queue_is_told_to_the_callback(broker: Broker):
    small = emails(broker, id=Id("app", "few"), queue_name="app:few", max_length=3)
    await broker.declare(topology_of(small))
    told = Told()
    for number in range(50):
        broker.publish_soon(message(exchange="app:few.x"), told.of(str(number)))
        if number % 10 == 0:
            await told.all()
    reasons = [reason for reasons in (await told.all()).values() for reason in reasons]
    assert set(reasons) == {None, "nacked"}
    assert len(reasons) == 50
    await ready(broker, "app:few", reasons.count(None))


async def test_a_callback_that_raises_harms_no_other(broker: Broker):
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context))
    await broker.publish(message(b"warm"))
    told = Told()

    def defect(_error: BrokerError | None) -> None:
        raise ValueError("a defect")

    for number in range(10):
        broker.publish_soon(message(), defect)
        broker.publish_soon(message(), told.of(str(number)))
    await told.all()

    async def heard() -> bool:
        return len(failures) == 10

    await eventually(heard, "the loop to hear of every defect")


async def test_after_the_close_the_callback_hears_of_it(broker: Broker):
    await broker.publish(message())
    await broker.close()
    told = Told()
    broker.publish_soon(message(), told.of("late"))
    assert await told.all() == {"late": ["closed"]}


# What a message may carry


HEADERS: Iterable[Any] = [
    "text",
    "grüße, 世界",
    "",
    True,
    False,
    0,
    -1,
    127,
    128,
    -129,
    65_535,
    2**31 - 1,
    2**31,
    -(2**31) - 1,
    2**63 - 1,
    -(2**63),
    0.1,
    1e300,
    -0.5,
    b"\x00\xff\xfe",
    None,
    [],
    [1, "two", 3.5, None, [True], {"k": b"\x80"}],
    {},
    {"a": {"b": {"c": [1, 2, {"d": -1}]}}},
]


async def test_header_values_arrive_as_they_were_sent(broker: Broker):
    headers = {f"h{index}": value for index, value in enumerate(HEADERS)}
    headers["n" * 255] = "a long name"
    await broker.publish(message(headers=headers))
    if not has(broker, Feature.EMPTY_TABLES):
        headers = {key: None if value == {} else value for key, value in headers.items()}
    (delivery,) = await drained(broker, NAME, 1)
    received = delivery.properties.headers
    assert received == headers
    assert {key: type(value) for key, value in received.items()} == {
        key: type(value) for key, value in headers.items()
    }


async def test_properties_arrive_as_they_were_sent(broker: Broker):
    properties = Properties(
        content_type="application/json",
        content_encoding="gzip",
        headers={"k": "v"},
        delivery_mode=PERSISTENT,
        priority=7,
        correlation_id="c-1",
        reply_to="r-1",
        expiration="600000" if has(broker, Feature.EXPIRATION) else None,
        message_id="m-1",
        timestamp=1_700_000_000,
        type="greeting",
        app_id="tests",
    )
    await broker.publish(Outgoing(EXCHANGE, "", b"", properties))
    (delivery,) = await drained(broker, NAME, 1)
    assert delivery.properties == properties
    assert delivery.body == b""


async def test_no_message_is_lost_over_an_empty_table_in_its_headers(broker: Broker):
    """Qpid 9.2.1 drops one in fifty of those that it is sent."""
    headers = {"a": {}, "b": [{}], "c": {"d": {}}}
    for _ in range(300):
        await broker.publish(message(headers=headers))
    (delivery, *_) = await drained(broker, NAME, 300)
    assert delivery.properties.headers == (
        headers if has(broker, Feature.EMPTY_TABLES) else {"a": None, "b": [None], "c": {"d": None}}
    )


async def test_a_large_body_arrives_whole(broker: Broker):
    body = bytes(range(256)) * 4096
    await broker.publish(message(body))
    (delivery,) = await drained(broker, NAME, 1)
    assert delivery.body == body


async def test_what_the_publisher_changes_afterwards_does_not_arrive(broker: Broker):
    headers: dict[str, Any] = {"list": [1]}
    await broker.publish(message(headers=headers))
    headers["list"].append(2)
    (delivery,) = await drained(broker, NAME, 1)
    assert delivery.properties.headers == {"list": [1]}


async def test_what_does_not_fit_a_message_is_refused_before_it_is_sent(broker: Broker):
    refused = [
        {"headers": {"n": 2**63}},
        {"headers": {"n" * 256: 1}},
        {"headers": {"o": object()}},
        {"expiration": "soon"},
        {"message_id": "m" * 256},
        {"priority": 256},
        {"delivery_mode": 3},
        {"timestamp": -1},
        {"key": "k" * 256},
        {"content_type": "\ud800"},
    ]
    if not has(broker, Feature.EXPIRATION):
        refused.remove({"expiration": "soon"})
    for properties in refused:
        with pytest.raises(BrokerError) as error:
            await broker.publish(message(**properties))
        assert reason(error) == "encode_failed", properties
    await broker.publish(message(b"fine"))
    assert [item.body for item in await drained(broker, NAME, 1)] == [b"fine"]


async def test_a_classic_queue_with_priorities_delivers_the_higher_first(broker: Broker):
    ranked = emails(broker, id=Id("app", "ranked"), queue_name="app:ranked", type="classic", max_priority=9)
    await broker.declare(topology_of(ranked))
    for priority in (0, 5, 9, 5, None):
        body = b"%d" % (priority or 0)
        await broker.publish(message(body, exchange="app:ranked.x", priority=priority))
    await ready(broker, "app:ranked", 5)
    assert [item.body for item in await drained(broker, "app:ranked", 5)] == [b"9", b"5", b"5", b"0", b"0"]


async def test_a_single_active_consumer_is_the_only_one_served_until_it_goes(broker: Broker):
    single = emails(broker, id=Id("app", "one"), queue_name="app:one", single_active_consumer=True)
    await broker.declare(topology_of(single))
    first, first_inbox = await consume(broker, "app:one", prefetch=0)
    _, second_inbox = await consume(broker, "app:one", prefetch=0)
    for number in range(4):
        await broker.publish(message(b"%d" % number, exchange="app:one.x"))
    first.settle(ack=await first_inbox.have(4))
    assert not second_inbox.deliveries
    await first.close()
    await broker.publish(message(b"next", exchange="app:one.x"))
    assert (await second_inbox.have(1))[0].body == b"next"


# What a broker lacks, and what happens instead


@pytest.mark.on("qpid")
async def test_qpid_is_asked_for_what_it_does_not_announce(broker: Broker):
    assert broker.server.product.startswith("Apache Qpid Broker-J")


@pytest.mark.on("qpid")
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"type": "quorum"}, "set type: Classic"),
        ({"max_length": 3}, "maxLength"),
        ({"max_length_bytes": 3}, "maxLengthBytes"),
        ({"queue_expiry_ms": 60_000}, "x-expires"),
    ],
)
async def test_qpid_is_refused_what_it_would_not_do_safely(
    broker: Broker, changes: dict[str, Any], told: str
):
    with pytest.raises(BrokerError, match=told) as error:
        await broker.declare(topology_of(emails(broker, queue_name="app:other", **changes)))
    assert reason(error) == "unsupported"
    assert broker.connected


@pytest.mark.on("qpid")
async def test_qpid_is_never_asked_to_delete(broker: Broker):
    for delete in (broker.delete_exchange(EXCHANGE), broker.delete_queue(NAME)):
        with pytest.raises(BrokerError, match="retain") as error:
            await delete
        assert reason(error) == "unsupported"
    await broker.publish(message(b"still here"))


@pytest.mark.on("qpid")
async def test_an_expiration_is_not_sent_to_qpid_which_reads_it_as_a_time_long_past(broker: Broker):
    with pytest.raises(BrokerError, match="expiration") as error:
        await broker.publish(message(expiration="60000"))
    assert reason(error) == "unsupported"
    told: asyncio.Future[BrokerError | None] = asyncio.get_running_loop().create_future()
    broker.publish_soon(message(expiration="60000"), told.set_result)
    assert "expiration" in str(await told)


@pytest.mark.on("qpid")
async def test_an_unroutable_message_is_refused_by_qpid_and_harms_no_other(broker: Broker):
    keys = ["dead", "nothing"] * 50
    calls = (broker.publish(message(b"%d" % n, exchange=RETRY, key=key)) for n, key in enumerate(keys))
    results = await asyncio.gather(*calls, return_exceptions=True)
    told = [result.reason if isinstance(result, BrokerError) else result for result in results]
    assert told == [None, "nacked"] * 50
    await ready(broker, DEAD, 50)


@pytest.mark.on("qpid")
async def test_a_queue_deleted_behind_a_consumers_back_is_noticed(
    broker: Broker, place: tuple[Qpid, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(watch, "PERIOD", 0.1)
    server, vhost = place
    lone = Topology(queues=(QueueDecl("lone"),))
    await broker.declare(lone)
    subscription, inbox = await consume(broker, "lone")
    await asyncio.to_thread(server.delete_queue, vhost, "lone")

    async def active() -> bool:
        return subscription.active

    async def inactive() -> bool:
        return not subscription.active

    await eventually(inactive, "the loss to be noticed")
    await broker.declare(lone)
    await eventually(active, "the consumer to come back")
    await broker.publish(message(b"new", exchange="", key="lone"))
    assert [item.body for item in await inbox.have(1)] == [b"new"]
