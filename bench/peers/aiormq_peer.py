"""aiormq, the protocol layer below aio-pika, on uvloop, with `multiple` acks."""

from __future__ import annotations

import asyncio

import aiormq
import aiormq.abc
import uvloop

import common


async def main() -> None:
    """Consume until killed."""
    options = common.options()
    connection = await aiormq.connect(common.uri())
    channel = await connection.channel()
    publishing = await connection.channel()
    await channel.basic_qos(prefetch_count=options.prefetch)
    open_count = 0
    last = 0

    def ack(count: int) -> None:
        nonlocal open_count
        if open_count >= count:
            open_count = 0
            asyncio.ensure_future(channel.basic_ack(last, multiple=count > 1, wait=False))  # noqa: RUF006

    async def drained(message: aiormq.abc.DeliveredMessage) -> None:
        nonlocal open_count, last
        common.handle(message.body)
        last = message.delivery_tag or 0
        open_count += 1
        ack(options.acks)

    async def relayed(message: aiormq.abc.DeliveredMessage) -> None:
        common.handle(message.body)
        properties = aiormq.spec.Basic.Properties(content_type="application/json", delivery_mode=2)
        await publishing.basic_publish(
            message.body, exchange=options.out, properties=properties, mandatory=True
        )
        await channel.basic_ack(message.delivery_tag or 0, wait=False)

    await channel.basic_consume(options.queue, relayed if options.out else drained)
    while True:
        await asyncio.sleep(0.05)
        if open_count and not options.out:
            open_count = options.acks
            ack(options.acks)


uvloop.run(main())
