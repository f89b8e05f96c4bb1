"""FastStream with its defaults."""

from __future__ import annotations

import asyncio
from typing import Any

from faststream import FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitExchange, RabbitQueue

import common


def main() -> None:
    """Consume until killed."""
    options = common.options()
    broker = RabbitBroker(common.uri(), logger=None, default_channel=Channel(prefetch_count=options.prefetch))
    queue = RabbitQueue(options.queue, declare=False)

    async def order(body: dict[str, Any]) -> None:
        common.read(body)
        if options.out:
            exchange = RabbitExchange(options.out, declare=False)
            await broker.publish(body, exchange=exchange, routing_key="", persist=True, mandatory=True)

    broker.subscriber(queue)(order)
    asyncio.run(FastStream(broker, logger=None).run())


main()
