"""What only a real broker can do to us: restarts, crashes, blocked connections, refused credentials."""

from __future__ import annotations

import asyncio
import logging
import secrets
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

import aiormq
import pytest
from pamqp import commands

from harness.waiting import eventually
from lunaq_runtime.brokers.amqp import AmqpBroker
from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.entries.model import Queue, Retry
from lunaq_runtime.ids import Id
from lunaq_runtime.message import PERSISTENT, Delivery, Outgoing, Properties
from lunaq_runtime.topology import QueueDecl, Topology, topology_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from harness.broker import Broker as Server
    from harness.rabbitmq import RabbitMQ

EMAILS = Queue(
    id=Id("app", "emails"), driver=Id("app", "mq"), queue_name="app:emails", retry=Retry(3, (3000,))
)
NAME, EXCHANGE, RETRY = "app:emails", "app:emails.x", "app:emails.retry"


# The harness has the kernel kill a node with the thread that started it, so this one outlives every loop.
NODE_THREAD = ThreadPoolExecutor(1, "node")


async def on_node(call: Callable[..., object], *args: str) -> None:
    """Do something to the node beside the running loop."""
    await asyncio.get_running_loop().run_in_executor(NODE_THREAD, call, *args)


@asynccontextmanager
async def connected(uri: str, **options: Any) -> AsyncIterator[AmqpBroker]:
    broker = AmqpBroker(uri, **{"reconnect_delay": 0.1, "reconnect_max_delay": 1.0} | options)

    async def connect() -> bool:
        await broker.connect()
        return True

    # A node that has just started may still refuse.
    await eventually(connect, "the broker to let us in", retry_on=(BrokerError,))
    try:
        yield broker
    finally:
        await broker.close()


def message(body: bytes = b"x", exchange: str = EXCHANGE, key: str = "") -> Outgoing:
    return Outgoing(exchange, key, body, Properties(delivery_mode=PERSISTENT))


async def until(condition: Callable[[], bool], what: str, timeout: float = 60) -> None:  # noqa: ASYNC109
    async def asked() -> bool:
        return condition()

    await eventually(asked, what, timeout)


@pytest.fixture
def fresh(restartable_rabbitmq: RabbitMQ) -> Queue:
    """A queue of the test's own on the restartable node, which runs."""
    restartable_rabbitmq.start()
    name = f"app:q{secrets.token_hex(4)}"
    return replace(EMAILS, id=Id.parse(name), queue_name=name)


# Logging in


async def test_the_broker_says_what_it_is(rabbitmq: Server, vhost: str):
    async with connected(rabbitmq.uri(vhost)) as broker:
        assert broker.connected
        assert broker.server.product == "RabbitMQ"
        assert broker.server.version[0].isdigit()


async def test_credentials_come_from_the_callable_and_are_asked_at_each_connect(rabbitmq: Server, vhost: str):
    asked = []

    def credentials() -> tuple[str, str]:
        asked.append(1)
        return rabbitmq.username, rabbitmq.password

    async with connected(rabbitmq.bare_uri(vhost), credentials=credentials) as broker:
        assert broker.connected
    async with connected(rabbitmq.bare_uri(vhost), credentials=credentials) as broker:
        assert broker.connected
    assert asked == [1, 1]


async def test_a_refused_password_is_told_without_being_told(
    rabbitmq: Server, vhost: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    password = "pa$$ word/%" + secrets.token_hex(4)
    broker = AmqpBroker(rabbitmq.bare_uri(vhost), credentials=lambda: ("tests", password))
    with pytest.raises(BrokerError) as error:
        await broker.connect()
    assert error.value.reason == "access_refused"
    chain = f"{error.value!r} {error.value} {error.value.__cause__!r}"
    assert password not in chain + caplog.text
    assert "pa%24" not in chain + caplog.text
    assert vhost in str(error.value)
    await broker.close()


async def test_a_password_in_the_url_is_never_told_either(rabbitmq: Server, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    password = "p" + secrets.token_hex(8)
    broker = AmqpBroker(rabbitmq.uri("/", "tests", password))
    with pytest.raises(BrokerError) as error:
        await broker.connect()
    assert password not in f"{error.value} {error.value.__cause__!r}" + caplog.text
    await broker.close()


async def test_a_missing_virtual_host_is_named(rabbitmq: Server):
    broker = AmqpBroker(rabbitmq.uri("no/such"))
    with pytest.raises(BrokerError, match="no/such") as error:
        await broker.connect()
    assert error.value.reason == "access_refused"
    await broker.close()


async def test_a_virtual_host_with_a_slash_is_reached(rabbitmq: Server):
    name = f"lq/{secrets.token_hex(4)}%2F"
    rabbitmq.api("PUT", f"/vhosts/{quote(name, safe='')}")
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    rabbitmq.api("PUT", f"/permissions/{quote(name, safe='')}/{rabbitmq.username}", everything)
    try:
        async with connected(rabbitmq.uri(name)) as broker:
            await broker.declare(Topology(queues=(QueueDecl("here"),)))
            await asyncio.to_thread(rabbitmq.api, "GET", f"/queues/{quote(name, safe='')}/here")
    finally:
        rabbitmq.delete_vhost(name)


async def test_nobody_listening_is_an_error_at_once():
    broker = AmqpBroker("amqp://127.0.0.1:1/")
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:1 ") as error:
        await broker.connect()
    assert error.value.reason == "connection"
    await broker.close()


async def test_a_broker_that_accepts_and_says_nothing_is_given_up():
    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.close()

    gone = asyncio.Event()
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    broker = AmqpBroker(f"amqp://127.0.0.1:{port}/", connection_timeout=0.3)
    with pytest.raises(BrokerError) as error:
        await broker.connect()
    assert error.value.reason == "timeout"
    gone.set()
    server.close()
    await server.wait_closed()
    await broker.close()


# Permissions


async def test_a_publish_without_the_right_is_refused_and_harms_no_other_in_flight(
    rabbitmq: Server, vhost: str
):
    async with connected(rabbitmq.uri(vhost)) as admin:
        await admin.declare(topology_of(EMAILS))
        await admin.declare(topology_of(replace(EMAILS, id=Id("app", "b"), queue_name="app:b")))
    user, password = f"u{secrets.token_hex(4)}", secrets.token_hex(8)
    rabbitmq.api("PUT", f"/users/{user}", {"password": password, "tags": ""})
    try:
        rights = {"configure": "^$", "write": r"^app:emails\.x$", "read": "^$"}
        rabbitmq.api("PUT", f"/permissions/{vhost}/{user}", rights)
        async with connected(rabbitmq.uri(vhost, user, password)) as broker:
            calls = [broker.publish(message(b"%d" % number)) for number in range(50)]
            calls[25:25] = [broker.publish(message(exchange="app:b.x")) for _ in range(3)]
            results = await asyncio.gather(*calls, return_exceptions=True)
        errors = [result.reason for result in results if isinstance(result, BrokerError)]
        assert errors == ["access_refused"] * 3
        assert sum(result is None for result in results) == 50
    finally:
        rabbitmq.api("DELETE", f"/users/{user}")


async def test_consuming_without_the_right_is_refused(rabbitmq: Server, vhost: str):
    async with connected(rabbitmq.uri(vhost)) as admin:
        await admin.declare(topology_of(EMAILS))
    user, password = f"u{secrets.token_hex(4)}", secrets.token_hex(8)
    rabbitmq.api("PUT", f"/users/{user}", {"password": password, "tags": ""})
    try:
        rights = {"configure": "^$", "write": "^$", "read": "^$"}
        rabbitmq.api("PUT", f"/permissions/{vhost}/{user}", rights)
        async with connected(rabbitmq.uri(vhost, user, password)) as broker:
            with pytest.raises(BrokerError, match="app:emails") as error:
                await broker.consume(NAME, prefetch=1, on_deliveries=lambda _batch: None)
            assert error.value.reason == "access_refused"
    finally:
        rabbitmq.api("DELETE", f"/users/{user}")


# Malformed messages


class Malformed(commands.Basic.Properties):
    """Properties with one field's bytes put in as they are."""

    raw: ClassVar[dict[str, bytes]] = {}

    def encode_property(self, name: str, value: Any) -> bytes:
        encoded: bytes = self.raw.get(name) or super().encode_property(name, value)
        return encoded


def nested(depth: int) -> bytes:
    inner = b""
    for _ in range(depth):
        inner = b"\x01nF" + struct.pack(">I", len(inner)) + inner
    return struct.pack(">I", len(inner)) + inner


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("correlation_id", b"\x03\xff\xfe\xfd"),
        ("headers", b"\x00\x00\x00\x05\x02\xff\xfet\x01"),
        ("headers", b"\x00\x00\x00\x0b\x01tT" + b"\x7f" * 8),
        ("timestamp", b"\x7f" * 8),
        ("headers", nested(300)),
        ("headers", nested(3000)),
    ],
    ids=["text", "header name", "header time", "timestamp", "deep", "deeper"],
)
async def test_a_malformed_message_arrives_and_takes_no_connection_down(
    rabbitmq: Server, vhost: str, name: str, raw: bytes
):
    async with connected(rabbitmq.uri(vhost)) as broker:
        await broker.declare(topology_of(EMAILS))
        value: Any = {"k": 1} if name == "headers" else datetime.now(UTC) if name == "timestamp" else "x"
        properties = type("Raw", (Malformed,), {"raw": {name: raw}})(**{name: value})
        async with aiormq.connect(rabbitmq.uri(vhost)) as foreign:
            channel = await foreign.channel()
            await channel.basic_publish(b"odd", exchange=EXCHANGE, properties=properties)
        await broker.publish(message(b"fine"))
        got: list[Delivery] = []
        subscription = await broker.consume(NAME, prefetch=10, on_deliveries=got.extend)
        await until(lambda: len(got) >= 2, "both messages")
        assert [(delivery.body, delivery.redelivered) for delivery in got] == [
            (b"odd", False),
            (b"fine", False),
        ]
        again = replace(got[0].properties, headers=got[0].properties.headers | {"attempts": 1})
        await broker.publish(Outgoing(RETRY, "dead", got[0].body, again))
        subscription.settle(ack=got)


# Restarts


async def test_a_consumer_comes_back_after_a_restart_as_a_new_generation(
    restartable_rabbitmq: RabbitMQ, fresh: Queue
):
    exchange = f"{fresh.queue_name}.x"
    got: list[Delivery] = []
    async with connected(restartable_rabbitmq.uri()) as broker:
        await broker.declare(topology_of(fresh))
        subscription = await broker.consume(fresh.queue_name, prefetch=10, on_deliveries=got.extend)
        await broker.publish(message(b"before", exchange))
        await until(lambda: len(got) == 1, "the first delivery")
        await on_node(restartable_rabbitmq.restart)
        await until(lambda: len(got) >= 2, "the redelivery")
        old, again = got[0], got[1]
        assert (again.body, again.redelivered) == (b"before", True)
        assert again.generation > old.generation
        subscription.settle(ack=[old])
        subscription.settle(ack=[again])
        await broker.publish(message(b"after", exchange))
        await until(lambda: got[-1].body == b"after", "a delivery after the restart")
        subscription.settle(ack=[got[-1]])
        assert subscription.active
        await subscription.close()
        assert (await broker.queue_info(fresh.queue_name)).ready == 0


async def test_a_publish_during_a_crash_waits_for_the_reconnect(restartable_rabbitmq: RabbitMQ, fresh: Queue):
    exchange = f"{fresh.queue_name}.x"
    async with connected(restartable_rabbitmq.uri()) as broker:
        await broker.declare(topology_of(fresh))
        await broker.publish(message(b"0", exchange))
        await on_node(restartable_rabbitmq.kill)
        await until(lambda: not broker.connected, "the loss to be noticed")
        with pytest.raises(BrokerError) as error:
            await broker.publish(message(b"too soon", exchange), timeout=0.2)
        assert error.value.reason == "connection"
        waiting = asyncio.create_task(broker.publish(message(b"1", exchange), timeout=120))
        await on_node(restartable_rabbitmq.start)
        await waiting
        assert await drained(broker, fresh.queue_name, 2) == [b"0", b"1"]


async def test_confirmed_retries_survive_a_restart_while_they_wait(
    restartable_rabbitmq: RabbitMQ, fresh: Queue
):
    """At least once needs quorum, at-least-once and reject-publish; with fewer these were lost."""
    number = 50
    async with connected(restartable_rabbitmq.uri()) as broker:
        await broker.declare(topology_of(fresh))
        retry = f"{fresh.queue_name}.retry"
        await asyncio.gather(*(broker.publish(message(b"%02d" % i, retry, "3000")) for i in range(number)))
        await on_node(restartable_rabbitmq.restart)
        await until(lambda: broker.connected, "the reconnect")
        bodies = await drained(broker, fresh.queue_name, number)
        assert sorted(set(bodies)) == [b"%02d" % i for i in range(number)]


async def test_nothing_confirmed_is_lost_in_a_crash_in_the_middle_of_publishing(
    restartable_rabbitmq: RabbitMQ, fresh: Queue
):
    exchange = f"{fresh.queue_name}.x"
    confirmed: set[bytes] = set()
    async with connected(restartable_rabbitmq.uri()) as broker:
        await broker.declare(topology_of(fresh))
        stop = asyncio.Event()

        async def publisher(name: int) -> None:
            number = 0
            while not stop.is_set():
                body = b"%d-%d" % (name, number)
                number += 1
                try:
                    await broker.publish(message(body, exchange), timeout=60)
                except BrokerError as error:
                    assert error.reason == "connection"  # noqa: PT017 - any other would be a defect
                else:
                    confirmed.add(body)

        tasks = [asyncio.create_task(publisher(name)) for name in range(20)]
        await until(lambda: len(confirmed) > 300, "publishing to run")
        await on_node(restartable_rabbitmq.kill)
        await on_node(restartable_rabbitmq.start)
        so_far = len(confirmed)
        await until(lambda: len(confirmed) > so_far + 100, "publishing to go on")
        stop.set()
        await asyncio.gather(*tasks)
        got: list[Delivery] = []
        acked = 0
        subscription = await broker.consume(fresh.queue_name, prefetch=500, on_deliveries=got.extend)

        def all_there() -> bool:
            nonlocal acked
            subscription.settle(ack=got[acked:])
            acked = len(got)
            return confirmed <= {delivery.body for delivery in got}

        await until(all_there, "everything confirmed to be there")
        await subscription.close()


async def test_cancelling_and_closing_during_an_outage_end_at_once(
    restartable_rabbitmq: RabbitMQ, fresh: Queue
):
    broker = AmqpBroker(restartable_rabbitmq.uri(), reconnect_delay=0.1)
    await broker.connect()
    await broker.declare(topology_of(fresh))
    subscription = await broker.consume(fresh.queue_name, prefetch=1, on_deliveries=lambda _batch: None)
    await on_node(restartable_rabbitmq.kill)
    await until(lambda: not subscription.active, "the loss to be noticed")
    async with asyncio.timeout(20):
        await subscription.cancel()
        await subscription.close()
        await broker.close()
    with pytest.raises(BrokerError) as error:
        await broker.publish(message())
    assert error.value.reason == "closed"
    await on_node(restartable_rabbitmq.start)


async def test_a_connection_closed_by_an_administrator_comes_back_with_its_consumer(
    restartable_rabbitmq: RabbitMQ, fresh: Queue
):
    got: list[Delivery] = []
    async with connected(restartable_rabbitmq.uri()) as broker:
        await broker.declare(topology_of(fresh))
        subscription = await broker.consume(fresh.queue_name, prefetch=1, on_deliveries=got.extend)
        await on_node(restartable_rabbitmq.ctl, "close_all_connections", "rights changed")
        # It may be back before the command has come back.
        await until(lambda: broker.reconnects == 1, "the reconnect")
        await until(lambda: subscription.active, "the consumer to come back")
        await broker.publish(message(b"still here", f"{fresh.queue_name}.x"))
        await until(lambda: [item.body for item in got] == [b"still here"], "a delivery")


async def test_a_broker_that_falls_silent_is_left_by_heartbeat_and_found_again(
    restartable_rabbitmq: RabbitMQ, fresh: Queue, caplog: pytest.LogCaptureFixture
):
    """Frozen, its sockets stay open and take what we send: only the missing heartbeats tell."""
    exchange = f"{fresh.queue_name}.x"
    got: list[Delivery] = []
    async with connected(restartable_rabbitmq.uri(), heartbeat=1, connection_timeout=1) as broker:
        await broker.declare(topology_of(fresh))
        subscription = await broker.consume(fresh.queue_name, prefetch=1, on_deliveries=got.extend)
        await broker.publish(message(b"1", exchange))
        await until(lambda: len(got) == 1, "the first delivery")
        restartable_rabbitmq.pause()
        try:
            await until(lambda: not broker.connected, "the silence to be noticed")
            with pytest.raises(BrokerError) as error:
                await broker.publish(message(b"too soon", exchange), timeout=0.2)
            assert error.value.reason == "connection"
            await until(lambda: "no answer in time" in caplog.text, "an attempt to be given up")
            assert not subscription.active
        finally:
            restartable_rabbitmq.resume()
        await until(lambda: len(got) >= 2, "the message to be delivered anew")
        assert (got[1].body, got[1].redelivered) == (b"1", True)
        subscription.settle(ack=[got[1]])
        await broker.publish(message(b"2", exchange))
        await until(lambda: got[-1].body == b"2", "deliveries to go on")
        subscription.settle(ack=[got[-1]])


# Blocked publishers


async def test_a_blocked_connection_stops_publishing_and_says_so(
    restartable_rabbitmq: RabbitMQ, fresh: Queue
):
    exchange = f"{fresh.queue_name}.x"
    async with connected(restartable_rabbitmq.uri()) as broker:
        await broker.declare(topology_of(fresh))
        await broker.publish(message(b"0", exchange))
        await on_node(restartable_rabbitmq.ctl, "set_vm_memory_high_watermark", "absolute", "1MB")
        try:
            for _ in range(2):
                with pytest.raises(BrokerError, match="blocks") as error:
                    await broker.publish(message(b"blocked", exchange), timeout=3)
                assert error.value.reason == "timeout"
            waiting = asyncio.create_task(broker.publish(message(b"1", exchange), timeout=60))
        finally:
            await on_node(restartable_rabbitmq.ctl, "set_vm_memory_high_watermark", "0.4")
        await waiting
        await broker.publish(message(b"2", exchange))


async def drained(broker: AmqpBroker, queue: str, number: int) -> list[bytes]:
    """Consume and ack `number` messages."""
    got: list[Delivery] = []
    subscription = await broker.consume(queue, prefetch=0, on_deliveries=got.extend)
    await until(lambda: len(got) >= number, f"{number} messages in {queue}")
    subscription.settle(ack=got)
    await subscription.close()
    return [delivery.body for delivery in got]
