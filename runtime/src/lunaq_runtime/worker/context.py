"""What a handler sees of its delivery through `queue.message()`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lunaq_runtime.headers import to_lua_headers
from lunaq_runtime.lua.host import MessageContext
from lunaq_runtime.retry import ATTEMPTS, attempts_of, original_expiration

if TYPE_CHECKING:
    from lunaq_runtime.entries.model import Consumer
    from lunaq_runtime.message import Delivery


def message_context(delivery: Delivery, consumer: Consumer) -> MessageContext:
    """Build the context: on a retry the publisher's headers are as they were, with `attempts` counted."""
    properties = delivery.properties
    headers = to_lua_headers(
        replace(properties, expiration=original_expiration(properties)),
        redelivered=delivery.redelivered,
        exchange=delivery.exchange,
        routing_key=delivery.routing_key,
    )
    attempts = attempts_of(properties)
    headers[ATTEMPTS] = attempts
    return MessageContext(
        message_id=properties.message_id or "",
        headers=headers,
        queue_id=str(consumer.queue),
        consumer_id=str(consumer.id),
        attempt=attempts,
    )
