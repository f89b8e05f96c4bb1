"""Plain aio-pika: a callback, a confirmed publish, an ack each."""

from __future__ import annotations

import asyncio

import aio_pika

import common


async def main() -> None:
    """Consume until killed."""
    options = common.options()
    connection = await aio_pika.connect_robust(common.uri())
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=options.prefetch)
    queue = await channel.get_queue(options.queue, ensure=False)
    publishing = await connection.channel()
    exchange = await publishing.get_exchange(options.out, ensure=False) if options.out else None

    async def arrived(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        common.handle(message.body)
        if exchange is not None:
            mode = aio_pika.DeliveryMode.PERSISTENT
            copy = aio_pika.Message(message.body, content_type="application/json", delivery_mode=mode)
            await exchange.publish(copy, "")
        await message.ack()

    await queue.consume(arrived)
    await asyncio.Event().wait()


asyncio.run(main())
