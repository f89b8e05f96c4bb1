"""The broker that the other tests stand on does what they take for granted."""

import resource
from pathlib import Path

import aio_pika
import pytest

from harness.broker import Broker, ManagementError
from harness.rabbitmq import RabbitMQ, broker_of_environment
from harness.toolchain import MissingToolError


async def publish(uri: str, queue: str, body: bytes) -> None:
    async with await aio_pika.connect(uri) as connection, connection.channel() as channel:
        await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": "quorum"})
        message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, routing_key=queue)


async def get(uri: str, queue: str) -> bytes:
    async with await aio_pika.connect(uri) as connection, connection.channel() as channel:
        declared = await channel.declare_queue(queue, passive=True)
        message = await declared.get(timeout=10)
        await message.ack()
        return message.body


async def test_a_virtual_host_passes_a_message(rabbitmq: Broker, vhost: str) -> None:
    await publish(rabbitmq.uri(vhost), "letters", b"hello")
    assert await get(rabbitmq.uri(vhost), "letters") == b"hello"


async def test_virtual_hosts_do_not_see_each_others_queues(rabbitmq: Broker, vhost: str) -> None:
    await publish(rabbitmq.uri(vhost), "letters", b"hello")
    other = rabbitmq.new_vhost()
    assert rabbitmq.api("GET", f"/queues/{other}") == []
    rabbitmq.delete_vhost(other)
    with pytest.raises(ManagementError, match="404"):
        rabbitmq.api("GET", f"/queues/{other}")


def test_a_uri_escapes_what_a_virtual_host_may_contain() -> None:
    broker = Broker("broker", 5672, "http://broker:15672", "a@b", "c/d")
    assert broker.uri() == "amqp://a%40b:c%2Fd@broker:5672/%2F"
    assert broker.bare_uri("app/prod") == "amqp://broker:5672/app%2Fprod"


async def test_a_durable_message_survives_a_graceful_restart(restartable_rabbitmq: RabbitMQ) -> None:
    vhost = restartable_rabbitmq.new_vhost()
    await publish(restartable_rabbitmq.uri(vhost), "letters", b"kept")
    restartable_rabbitmq.restart()
    assert await get(restartable_rabbitmq.uri(vhost), "letters") == b"kept"


async def test_a_durable_message_survives_a_crash(restartable_rabbitmq: RabbitMQ) -> None:
    vhost = restartable_rabbitmq.new_vhost()
    await publish(restartable_rabbitmq.uri(vhost), "letters", b"kept")
    restartable_rabbitmq.kill()
    with pytest.raises(OSError, match="refused"):
        restartable_rabbitmq.api("GET", "/overview")
    restartable_rabbitmq.start()
    assert await get(restartable_rabbitmq.uri(vhost), "letters") == b"kept"


def test_rabbitmqctl_talks_to_the_node_under_test(restartable_rabbitmq: RabbitMQ) -> None:
    assert restartable_rabbitmq.username in restartable_rabbitmq.ctl("list_users")
    with pytest.raises(RuntimeError, match="no-such-command"):
        restartable_rabbitmq.ctl("no-such-command")


def test_a_node_may_open_files_for_many_quorum_queues(restartable_rabbitmq: RabbitMQ) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limits = Path(f"/proc/{restartable_rabbitmq._beam.pid}/limits").read_text()
    soft = next(line for line in limits.splitlines() if line.startswith("Max open files")).split()[3]
    assert int(soft) == min(most, 20_000)


def test_two_nodes_run_side_by_side_and_one_leaves_nothing_behind(restartable_rabbitmq: RabbitMQ) -> None:
    other = RabbitMQ()
    try:
        other.start()
        names = {node.api("GET", "/overview")["node"] for node in (restartable_rabbitmq, other)}
        assert names == {"rabbit@localhost"}
        pids = [other._beam.pid, other._epmd.pid]
    finally:
        other.stop()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not other._dir.exists()
    assert restartable_rabbitmq.api("GET", "/overview")["node"] == "rabbit@localhost"


def test_a_half_named_external_broker_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNAQ_TEST_AMQP_URI", "amqp://broker")
    monkeypatch.delenv("LUNAQ_TEST_MANAGEMENT_URI", raising=False)
    with pytest.raises(MissingToolError, match="LUNAQ_TEST_MANAGEMENT_URI"):
        broker_of_environment()
    monkeypatch.setenv("LUNAQ_TEST_MANAGEMENT_URI", "http://broker:15672/")
    broker = broker_of_environment()
    assert broker is not None
    assert (broker.port, broker.management_uri) == (5672, "http://broker:15672")
