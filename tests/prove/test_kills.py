"""`make prove-kills`: 0 of 100,000 messages lost over 50 SIGKILLs and 10 restarts of the broker."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from harness.waiting import eventually
from prove.accounting import CONCURRENCY, PREFETCH, Books, Client, Runtime, new_uri, report, restart, scale

if TYPE_CHECKING:
    from pathlib import Path

    from harness.rabbitmq import RabbitMQ

FATES = {"retry": 0.1, "dead": 0.01}
pytestmark = pytest.mark.timeout(3000)


async def test_nothing_is_lost_over_kills_of_the_runtime_and_restarts_of_the_broker(
    restartable_rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    messages, kills, restarts = int(100_000 * scale()), max(int(50 * scale()), 2), max(int(10 * scale()), 1)
    uri = new_uri(restartable_rabbitmq)
    runtime, books = Runtime(uri, tmp_path), Books()
    client = Client(uri, books)
    runtime.start()
    await eventually(client.consumed, "the runtime to consume", timeout=60)
    publishing = asyncio.create_task(client.publish(messages, rate=3000, fates=FATES))
    moments = ["kill"] * kills + ["restart"] * restarts
    random.shuffle(moments)
    for moment in moments:
        await _work_goes_on(client)
        await asyncio.sleep(random.uniform(0.5, 2.5))
        if moment == "kill":
            runtime.kill()
            runtime.start()
        else:
            await restart(restartable_rabbitmq)
    await publishing
    await client.settled()
    await runtime.terminate()
    await client.read()
    interruptions = kills + restarts
    report(
        "kills",
        f"{kills} SIGKILLs, {restarts} broker restarts, up to {PREFETCH} in flight at each: {books.text()},"
        f" {len(books.redelivered)} redelivered",
    )
    assert books.lost() == []
    assert books.wrongly_dead() == []
    assert len(books.repeated()) <= interruptions * (PREFETCH + CONCURRENCY)


async def test_nothing_is_lost_or_handled_twice_over_orderly_ends(
    restartable_rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    messages, ends = int(50_000 * scale()), max(int(50 * scale()), 2)
    uri = new_uri(restartable_rabbitmq)
    runtime, books = Runtime(uri, tmp_path), Books()
    client = Client(uri, books)
    runtime.start()
    await eventually(client.consumed, "the runtime to consume", timeout=60)
    publishing = asyncio.create_task(client.publish(messages, rate=1000, fates=FATES))
    for _ in range(ends):
        await _work_goes_on(client)
        await asyncio.sleep(random.uniform(0.2, 1.0))
        await runtime.terminate()
        runtime.start()
    await publishing
    await client.settled()
    await runtime.terminate()
    await client.read()
    report("drains", f"{ends} SIGTERMs: {books.text()}")
    assert books.lost() == []
    assert books.repeated() == []
    assert books.wrongly_dead() == []


async def _work_goes_on(client: Client) -> None:
    """Wait until the ledger grows: the runtime is up and at work."""
    seen = -1

    async def grows() -> bool:
        nonlocal seen
        before, seen = seen, await client.ledger()
        return 0 <= before < seen

    await eventually(grows, "the runtime to handle something", timeout=90)
