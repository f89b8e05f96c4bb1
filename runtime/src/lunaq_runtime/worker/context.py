"""What a handler sees of its delivery through `queue.message()`, made only where it looks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lunaq_runtime.headers import to_lua_headers
from lunaq_runtime.retry import ATTEMPTS, attempts_of, original_expiration

if TYPE_CHECKING:
    from lunaq_runtime.entries.model import Consumer
    from lunaq_runtime.message import Delivery


class DeliveryContext:
    """A `lua.host.MessageContext` of the delivery that a slot is working on, pointed at one after another.

    Most handlers read their body and nothing else, so nothing is decoded before it is asked for.
    """

    def __init__(self, consumer: Consumer) -> None:
        self.queue_id = str(consumer.queue)
        self.consumer_id = str(consumer.id)
        self._delivery: Delivery | None = None
        self._headers: dict[str, Any] | None = None

    def point_at(self, delivery: Delivery) -> None:
        """Show this delivery from now on."""
        self._delivery = delivery
        self._headers = None

    @property
    def message_id(self) -> str:
        delivery = self._delivery
        return (delivery.properties.message_id or "") if delivery else ""

    @property
    def attempt(self) -> int:
        """Count finished runs."""
        delivery = self._delivery
        return 0 if delivery is None or delivery.bare else attempts_of(delivery.properties)

    @property
    def headers(self) -> dict[str, Any]:
        """Show the headers: on a retry the publisher's are as they were, with `attempts` counted."""
        if self._headers is None and self._delivery:
            self._headers = _headers_of(self._delivery)
        return self._headers or {}


def _headers_of(delivery: Delivery) -> dict[str, Any]:
    properties = delivery.properties
    headers = to_lua_headers(
        replace(properties, expiration=original_expiration(properties)),
        redelivered=delivery.redelivered,
        exchange=delivery.exchange,
        routing_key=delivery.routing_key,
    )
    headers[ATTEMPTS] = attempts_of(properties)
    return headers
