"""Asks after consumers on a broker that does not say when their queue is deleted; `broker` runs it there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lunaq_runtime.brokers.amqp.declare import queue_info
from lunaq_runtime.brokers.amqp.errors import heed_cancellation
from lunaq_runtime.brokers.base import BrokerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lunaq_runtime.brokers.amqp.subscription import AmqpSubscription, Links

PERIOD = 5.0
"""Seconds between two looks."""


async def watch_consumers(links: Links, subscriptions: Sequence[AmqpSubscription]) -> None:
    """Interrupt what consumes a queue that is gone, or that has no consumer at all any more."""
    while True:
        await asyncio.sleep(PERIOD)
        link = await links.wait_link()
        for subscription in tuple(subscriptions):
            if not subscription.active:
                continue
            try:
                gone = (await queue_info(link, subscription.queue)).consumers == 0
            except BrokerError as error:
                gone = error.reason == "queue_not_found"
            heed_cancellation()
            if gone and subscription.active:
                subscription.interrupt()
