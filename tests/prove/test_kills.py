"""`make prove-kills`: 0 of 100,000 messages lost over 50 SIGKILLs and 10 restarts of the broker."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from prove.accounting import PREFETCH, Stage, report, restart, scale

if TYPE_CHECKING:
    from pathlib import Path

    from harness.rabbitmq import RabbitMQ

FATES = {"retry": 0.1, "dead": 0.01}
pytestmark = pytest.mark.timeout(3000)


async def test_nothing_is_lost_over_kills_of_the_runtime_and_restarts_of_the_broker(
    restartable_rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    messages, kills, restarts = int(100_000 * scale()), max(int(50 * scale()), 2), max(int(10 * scale()), 1)
    stage = Stage(restartable_rabbitmq, tmp_path)
    runtime, books = stage.runtime, stage.books
    moments = ["kill"] * kills + ["restart"] * restarts
    random.shuffle(moments)
    async with stage.running():
        for moment in moments:
            # As fast as it goes, so that there is a backlog at each moment, however fast the machine is.
            await stage.published()
            stage.publish(-(-messages // len(moments)), fates=FATES)
            await stage.goes_on()
            await asyncio.sleep(random.uniform(0, 1))
            if moment == "kill":
                runtime.kill()
                runtime.start()
            else:
                await restart(restartable_rabbitmq)
    report(
        "kills",
        f"{kills} SIGKILLs, {restarts} broker restarts, up to {PREFETCH} in flight at each: {books.text()},"
        f" {len(books.redelivered)} redelivered",
    )
    stage.nothing_lost(interruptions=kills + restarts)


async def test_nothing_is_lost_or_handled_twice_over_orderly_ends(
    restartable_rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    messages, ends = int(50_000 * scale()), max(int(50 * scale()), 2)
    stage = Stage(restartable_rabbitmq, tmp_path)
    runtime, books = stage.runtime, stage.books
    async with stage.running():
        for _ in range(ends):
            await stage.published()
            stage.publish(messages // ends, fates=FATES)
            await stage.goes_on()
            await asyncio.sleep(random.uniform(0, 0.5))
            await runtime.terminate()
            runtime.start()
    report("drains", f"{ends} SIGTERMs: {books.text()}")
    stage.nothing_lost(interruptions=0)
