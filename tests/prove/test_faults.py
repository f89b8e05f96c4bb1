"""`make prove-faults`: what may happen to a delivery, one fault a test, every message accounted for."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import aio_pika
import pytest

from harness.processes import free_port
from harness.rabbitmq import RabbitMQ
from harness.sandbox import Sandbox
from harness.waiting import eventually
from prove.accounting import AWAY, PREFETCH, Runtime, Stage, report, restart, scale

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(900)
MESSAGES = max(int(2000 * scale()), 200)
CUTS = 3


@pytest.fixture(name="stage")
async def _stage(restartable_rabbitmq: RabbitMQ, tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(restartable_rabbitmq, tmp_path)
    yield stage
    stage.runtime.kill()


async def test_a_cut_network_loses_nothing(tmp_path: Path) -> None:
    sandbox = Sandbox()
    sandbox.start()
    host, port = sandbox.network.host, free_port()
    rabbitmq = RabbitMQ(f"listeners.tcp.2 = {host}:{port}")
    try:
        rabbitmq.start()
        stage = Stage(rabbitmq, tmp_path)
        uri = stage.uri.replace(f"127.0.0.1:{rabbitmq.port}", f"{host}:{port}") + "?heartbeat=4"
        stage.runtime = Runtime(uri, tmp_path, sandbox.wrap_network)
        async with stage.running():
            stage.publish(MESSAGES, rate=400, fates={"retry": 0.2})
            for _ in range(CUTS):
                seen = await stage.client.ledger()
                sandbox.run("iptables", "-I", "INPUT", "-s", host, "-j", "DROP")
                await asyncio.sleep(10)  # longer than two heartbeats: both sides give the connection up
                sandbox.run("iptables", "-D", "INPUT", "-s", host, "-j", "DROP")

                async def goes_on(seen: int = seen) -> bool:
                    return await stage.client.ledger() > seen + PREFETCH

                await eventually(goes_on, "the runtime to work again", timeout=60)
        stage.nothing_lost(interruptions=CUTS)
        report("cut network", f"{CUTS} cuts of 10 s: {stage.books.text()}")
    finally:
        rabbitmq.stop()
        sandbox.stop()


@pytest.mark.parametrize("fault", ["SIGKILL", "restart"])
async def test_one_fault_in_the_middle_loses_nothing_and_repeats_no_more_than_was_in_flight(
    stage: Stage, fault: str
) -> None:
    async with stage.running():
        stage.publish(MESSAGES, rate=400, fates={"retry": 0.2, "dead": 0.01})
        await stage.goes_on()
        if fault == "SIGKILL":
            stage.runtime.kill()
            stage.runtime.start()
        else:
            await restart(stage.rabbitmq)
        await stage.goes_on()
    stage.nothing_lost(interruptions=1)
    report(f"one {fault}", stage.books.text())


async def test_a_full_ledger_queue_refuses_and_loses_nothing(stage: Stage) -> None:
    await stage.up()
    vhost = stage.uri.rpartition("/")[2]

    def limit(length: int) -> None:
        rule = {"max-length": length, "overflow": "reject-publish"}
        policy = {"pattern": "^ledger$", "definition": rule, "apply-to": "queues", "priority": 1}
        stage.rabbitmq.api("PUT", f"/policies/{vhost}/full", policy)

    limit(20)
    await stage.client.publish(100)

    async def full() -> bool:
        return await stage.client.ledger() >= 20

    await eventually(full, "the ledger to be full", timeout=60)
    limit(1_000_000)  # a policy that is deleted goes on with 3.10's quorum queues

    async def lifted() -> bool:
        found = stage.rabbitmq.api("GET", f"/queues/{vhost}/ledger")
        return bool((found.get("effective_policy_definition") or {}).get("max-length", 0) > 20)

    await eventually(lifted, "the limit to be lifted")
    before = set(stage.books.published)
    await stage.client.publish(50)
    await _all_dead_or_run(stage)
    assert set(stage.books.runs) >= set(stage.books.published) - before
    report("full queue", f"target took 20 of 100, and all of 50 once it took more: {stage.books.text()}")


async def test_a_target_that_is_deleted_and_made_again_loses_nothing(stage: Stage) -> None:
    await stage.up()
    connection = await aio_pika.connect(stage.uri)
    async with connection:
        channel = await connection.channel()
        await channel.exchange_delete("ledger.x")
        await stage.client.publish(100)

        async def failing() -> bool:
            return await stage.client.ready() > 0

        await eventually(failing, "messages to wait for their retry", timeout=60)
        exchange = await channel.declare_exchange("ledger.x", aio_pika.ExchangeType.FANOUT, durable=True)
        await (await channel.get_queue("ledger", ensure=False)).bind(exchange)
    await _all_dead_or_run(stage)
    report("target deleted", f"100 messages: {stage.books.text()}")


async def _all_dead_or_run(stage: Stage) -> None:
    """Every message has run to its end, or is a dead letter because its publish failed too often."""

    async def accounted() -> bool:
        await stage.client.read()
        ended = set(stage.books.runs) | set(stage.books.dead)
        return ended == set(stage.books.published) and await stage.client.ready() == 0

    await eventually(accounted, "every message to be accounted for", timeout=120)
    await stage.runtime.terminate()
    assert set(stage.books.reasons) <= {"max_attempts"}


async def test_a_message_that_kills_its_process_is_dead_lettered_and_no_innocent_one_with_it(
    stage: Stage,
) -> None:
    await stage.up()
    await stage.client.publish(1, fates={"killer": 1.0})
    await stage.client.publish(PREFETCH * 3, rate=100)
    killer = 1
    kills = 0
    while not stage.books.dead[killer]:
        before = len(stage.books.started)

        async def started(before: int = before) -> bool:
            with contextlib.suppress(*AWAY):
                await stage.client.read()
            return len(stage.books.started) > before or bool(stage.books.dead[killer])

        await eventually(started, "the killer to run, or to be dead", timeout=120)
        if stage.books.dead[killer]:
            break
        stage.runtime.kill()
        kills += 1
        stage.runtime.start()
    await stage.all_in()
    assert set(stage.books.dead) == {killer}
    report("killer", f"dead after {kills} deaths of its process: {stage.books.text()}")


async def test_a_slow_handler_across_a_shutdown_ends_and_is_not_repeated(stage: Stage) -> None:
    await stage.up()
    await stage.client.publish(PREFETCH, fates={"slow": 1.0})
    await eventually(stage.at_work, "the first slow handlers to end", timeout=60)
    await stage.runtime.terminate()
    stage.runtime.start()
    await stage.all_in()
    assert stage.books.repeated() == []
    report("slow handler across a shutdown", stage.books.text())


async def test_retries_that_wait_across_a_restart_of_the_broker_come_back(stage: Stage) -> None:
    async with stage.running():
        stage.publish(MESSAGES, rate=500, fates={"retry": 1.0})
        await eventually(stage.at_work, "handlers to run", timeout=60)
        await restart(stage.rabbitmq)
        await stage.published()
        await restart(stage.rabbitmq)
    stage.nothing_lost(interruptions=2)
    report("retries across restarts", stage.books.text())
