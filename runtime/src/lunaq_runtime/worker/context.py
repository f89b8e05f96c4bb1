"""What a handler sees of its delivery through `queue.message()`, made only where it looks; and what of a
delivery goes on with what is published for it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from lunaq_runtime.headers import to_lua_headers
from lunaq_runtime.retry import ATTEMPTS, attempts_of, original_expiration
from lunaq_runtime.trace_context import PARENT, carried

if TYPE_CHECKING:
    from lunaq_runtime.entries.model import Consumer
    from lunaq_runtime.lua.requests import Publish
    from lunaq_runtime.message import Delivery


class AtWork(Protocol):
    """A slot."""

    delivery: Delivery | None


class DeliveryContext:
    """A `lua.host.MessageContext` of whatever delivery a slot is working on.

    Most handlers read their body and nothing else, so nothing is decoded before it is asked for.
    """

    __slots__ = (
        "_headers",
        "_slot",
        "consumer_id",
        "queue_id",
    )

    def __init__(self, consumer: Consumer, slot: AtWork) -> None:
        self.queue_id = str(consumer.queue)
        self.consumer_id = str(consumer.id)
        self._slot = slot
        self._headers: tuple[Delivery | None, dict[str, Any]] = (None, {})

    @property
    def message_id(self) -> str:
        delivery = self._slot.delivery
        return (delivery.properties.message_id or "") if delivery else ""

    @property
    def attempt(self) -> int:
        """Count finished runs."""
        delivery = self._slot.delivery
        return 0 if delivery is None or delivery.bare else attempts_of(delivery.properties)

    @property
    def headers(self) -> dict[str, Any]:
        """Show the headers: on a retry the publisher's are as they were, with `attempts` counted."""
        delivery = self._slot.delivery
        of, headers = self._headers
        if of is not delivery:
            headers = _headers_of(delivery) if delivery else {}
            self._headers = delivery, headers
        return headers


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


def carry_on_trace(publish: Publish, delivery: Delivery) -> Publish:
    """Let a publish carry on the trace of the delivery it is made for, unless the handler set another one."""
    if delivery.bare or PARENT in publish.headers:
        return publish
    headers = carried(delivery.properties.headers)
    return replace(publish, headers=headers | publish.headers) if headers else publish
