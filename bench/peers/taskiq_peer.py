"""taskiq on its aio-pika broker: its own exchange, queue and message format.

python taskiq_peer.py                              declares
python -m taskiq worker taskiq_peer:broker --workers 1
"""

from __future__ import annotations

import asyncio
from typing import Any

from taskiq_aio_pika import AioPikaBroker, Exchange, Queue

import common

broker = AioPikaBroker(
    common.uri(),
    qos=200,
    exchange=Exchange(name="bench-taskiq"),
    task_queues=[Queue(name="bench-taskiq")],
)


@broker.task(task_name="order")
async def order(body: dict[str, Any]) -> None:
    """Read two fields."""
    common.read(body)


async def _declare() -> None:
    await broker.startup()
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(_declare())
