"""Declaring, deleting and asking, each on a channel of its own; plain functions of a Link.

`broker` calls them for the operator, the local mode and `queue.info`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lunaq_runtime.brokers.amqp import qpid
from lunaq_runtime.brokers.base import BrokerError, QueueInfo
from lunaq_runtime.brokers.features import QPID, Feature

if TYPE_CHECKING:
    from lunaq_runtime.brokers.amqp.link import Link
    from lunaq_runtime.topology import Topology

TIMEOUT = 30.0
"""Seconds for one operation; a quorum queue takes about 0.1 s, more while others are declared."""


async def declare(link: Link, topology: Topology) -> None:
    """Declare all objects of `topology` on one channel; the first refusal ends it."""
    if link.product is QPID:
        topology = qpid.translated(topology)
    seconds = TIMEOUT + len(topology.queues)
    async with link.short_channel("cannot declare", seconds) as channel:
        for exchange in topology.exchanges:
            await channel.exchange_declare(
                exchange.name, exchange_type=exchange.type, durable=True, arguments=exchange.arguments
            )
        for queue in topology.queues:
            await channel.queue_declare(
                queue.name, durable=queue.durable, auto_delete=queue.auto_delete, arguments=queue.arguments
            )
        for binding in topology.bindings:
            await channel.queue_bind(binding.queue, binding.exchange, binding.routing_key)


async def delete_queue(link: Link, name: str) -> None:
    """Delete a queue, whatever it holds."""
    _require_safe_delete(link, name)
    async with link.short_channel(f"cannot delete queue '{name}'", TIMEOUT) as channel:
        await channel.queue_delete(name)


async def delete_exchange(link: Link, name: str) -> None:
    """Delete an exchange."""
    _require_safe_delete(link, name)
    async with link.short_channel(f"cannot delete exchange '{name}'", TIMEOUT) as channel:
        await channel.exchange_delete(name)


def _require_safe_delete(link: Link, name: str) -> None:
    # An exchange, too: it is the first step of deleting a queue, and the second would not follow.
    if not link.product.has(Feature.SAFE_DELETE):
        raise qpid.refuse_delete(name)


async def queue_info(link: Link, name: str) -> QueueInfo:
    """Ask for the number of ready messages and of consumers."""
    async with link.short_channel(f"cannot look at queue '{name}'", TIMEOUT) as channel:
        answer = await channel.queue_declare(name, passive=True)
        return QueueInfo(answer.message_count or 0, answer.consumer_count or 0)


async def exchange_exists(link: Link, name: str) -> bool:
    """Ask whether an exchange exists."""
    try:
        async with link.short_channel(f"cannot look at exchange '{name}'", TIMEOUT) as channel:
            # An empty type, for Qpid compares it even here.
            await channel.exchange_declare(name, exchange_type="", passive=True)
    except BrokerError as error:
        if error.reason == "queue_not_found":
            return False
        raise
    return True
