"""`make prove-idle`: an idle runtime is under 80 MiB resident, and consumes within 1.5 s of its start."""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import aio_pika
import pytest

from prove.accounting import Runtime, new_uri, report

if TYPE_CHECKING:
    from harness.rabbitmq import RabbitMQ

pytestmark = pytest.mark.timeout(300)
ROUNDS = 5
IDLE = 5.0


async def test_an_idle_runtime_is_small_and_consumes_soon(
    restartable_rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    uri = new_uri(restartable_rabbitmq)
    starts, sizes = [], []
    connection = await aio_pika.connect(uri)
    async with connection:
        for number in range(ROUNDS + 1):
            runtime = Runtime(uri, tmp_path)
            began = time.perf_counter()
            runtime.start()
            await _consumed(connection)
            if number:  # the first one declares the queues, and compiles Python
                starts.append(time.perf_counter() - began)
                await asyncio.sleep(IDLE)
                sizes.append(_resident(runtime.process.pid))
            await runtime.terminate()
    start, size = statistics.median(starts), statistics.median(sizes)
    report("idle", f"consuming {start:.2f} s after its start, {size:.0f} MiB resident (medians of {ROUNDS})")
    assert start < 1.5
    assert size < 80


async def _consumed(connection: aio_pika.abc.AbstractConnection) -> None:
    while True:
        channel = await connection.channel()
        try:
            queue = await channel.declare_queue("work", passive=True)
            if queue.declaration_result.consumer_count:
                await channel.close()
                return
            await channel.close()
        except aio_pika.exceptions.ChannelClosed:  # not declared yet
            pass
        await asyncio.sleep(0.01)


def _resident(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    if found is None:
        raise RuntimeError(f"process {pid} is gone")
    return int(found[1]) / 1024
