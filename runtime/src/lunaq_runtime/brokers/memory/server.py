"""The broker behind `MemoryBroker` connections: exchanges, bindings, routing and dead-lettering.

Several connections may share one, as consumers in several processes share a real broker.
"""

from __future__ import annotations

import asyncio
import time
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.brokers.memory.queue import MemoryQueue, Message
from lunaq_runtime.brokers.wire import check, check_names

if TYPE_CHECKING:
    from collections.abc import Callable

    from lunaq_runtime.brokers.memory.queue import Clock
    from lunaq_runtime.message import Outgoing
    from lunaq_runtime.topology import Binding, ExchangeDecl, QueueDecl

MAX_ROUTES = 1000
"""Pairs of exchange and routing key whose queues are remembered."""

DEAD_LETTER_RETRY = 5.0
"""Seconds after which an at-least-once dead letter without a taker is tried again (RabbitMQ: 180)."""


class MemoryServer:
    """Exchanges and queues in memory; `clock` is the running loop unless given."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.queues: dict[str, MemoryQueue] = {}
        self.exchanges: dict[str, ExchangeDecl] = {}
        self.published = 0
        self.on_queue_declared: list[Callable[[MemoryQueue], None]] = []
        self._bindings: list[Binding] = []
        self._routes: dict[tuple[str, str], list[str]] = {}  # what was looked up in them
        self._clock = clock

    def declare_exchange(self, decl: ExchangeDecl) -> None:
        """Declare an exchange, or refuse another type; like RabbitMQ, other arguments are let pass."""
        current = self.exchanges.setdefault(decl.name, decl)
        if current.type != decl.type:
            raise _inequivalent("type", "exchange", decl.name, decl.type, current.type)

    def declare_queue(self, decl: QueueDecl) -> None:
        """Declare a queue, or refuse other arguments than it has."""
        if queue := self.queues.get(decl.name):
            _require_equal(decl, queue.decl)
            queue.watch_use()
            return
        queue = MemoryQueue(decl, self._time(), self._dead_letter)
        queue.on_unused = lambda: self.delete_queue(decl.name)
        self.queues[decl.name] = queue
        for callback in list(self.on_queue_declared):
            callback(queue)

    def bind(self, binding: Binding) -> None:
        """Bind a queue; both ends must exist."""
        if binding.exchange not in self.exchanges:
            raise BrokerError("queue_not_found", f"no exchange '{binding.exchange}'")
        self.queue(binding.queue)
        if binding not in self._bindings:
            self._bindings.append(binding)
            self._routes.clear()

    def delete_queue(self, name: str) -> None:
        """Delete a queue with its bindings and messages."""
        if queue := self.queues.pop(name, None):
            self._bindings = [binding for binding in self._bindings if binding.queue != name]
            self._routes.clear()
            queue.close()

    def delete_exchange(self, name: str) -> None:
        """Delete an exchange with its bindings."""
        if self.exchanges.pop(name, None):
            self._bindings = [binding for binding in self._bindings if binding.exchange != name]
            self._routes.clear()

    def queue(self, name: str) -> MemoryQueue:
        """Look up a queue, or raise `queue_not_found`."""
        if name not in self.queues:
            raise BrokerError("queue_not_found", f"no queue '{name}'")
        return self.queues[name]

    def publish(self, outgoing: Outgoing) -> None:
        """Route a copy of the message to each queue, or raise what a confirm would have said."""
        check_names(outgoing.exchange, outgoing.routing_key)
        check(outgoing.properties)
        if outgoing.exchange and outgoing.exchange not in self.exchanges:
            raise BrokerError("queue_not_found", f"no exchange '{outgoing.exchange}'")
        targets = self._route(outgoing.exchange, outgoing.routing_key)
        if not targets:
            text = f"no queue takes '{outgoing.routing_key}' from exchange '{outgoing.exchange}'"
            raise BrokerError("unroutable", text)
        properties = outgoing.properties
        headers = deepcopy(properties.headers) if properties.headers else {}
        message = Message(bytes(outgoing.body), properties, headers, outgoing.exchange, outgoing.routing_key)
        if len(targets) == 1:
            refused = [] if targets[0].offer(message) else [targets[0].decl.name]
        else:
            refused = [queue.decl.name for queue in targets if not queue.offer(message.copy())]
        if refused:
            raise BrokerError("nacked", f"queue '{refused[0]}' is full and rejects the message")
        self.published += 1

    def _route(self, exchange: str, routing_key: str) -> list[MemoryQueue]:
        if not exchange:
            return [self.queues[routing_key]] if routing_key in self.queues else []
        if exchange not in self.exchanges:
            return []
        routes = self._routes.get((exchange, routing_key))
        if routes is None:
            fanout = self.exchanges[exchange].type == "fanout"
            routes = list(
                {
                    binding.queue: None
                    for binding in self._bindings
                    if binding.exchange == exchange and (fanout or binding.routing_key == routing_key)
                }
            )
            if len(self._routes) >= MAX_ROUTES:
                self._routes.clear()
            self._routes[exchange, routing_key] = routes
        return [self.queues[name] for name in routes]

    def _dead_letter(self, queue: MemoryQueue, message: Message, reason: str) -> None:
        arguments = queue.decl.arguments
        exchange = arguments.get("x-dead-letter-exchange")
        if exchange is None:
            return
        letter = message.copy()
        letter.properties = replace(message.properties, expiration=None)
        letter.headers = _with_death(message, queue.decl.name, reason)
        letter.exchange = exchange
        letter.routing_key = arguments.get("x-dead-letter-routing-key", message.routing_key)
        strict = (
            queue.quorum
            and arguments.get("x-dead-letter-strategy") == "at-least-once"
            and arguments.get("x-overflow") == "reject-publish"
        )
        taken: set[str] = set()
        if not self._deliver_letter(letter, taken) and strict:
            queue.held += 1
            self._keep_trying(queue, letter, taken)

    def _keep_trying(self, queue: MemoryQueue, letter: Message, taken: set[str]) -> None:
        def again() -> None:
            if self.queues.get(queue.decl.name) is not queue:
                return
            if self._deliver_letter(letter, taken):
                queue.held -= 1
            else:
                self._keep_trying(queue, letter, taken)

        self._time().call_later(DEAD_LETTER_RETRY, again)

    def _time(self) -> Clock:
        return self._clock or asyncio.get_running_loop()

    def _deliver_letter(self, letter: Message, taken: set[str]) -> bool:
        targets = self._route(letter.exchange, letter.routing_key)
        for queue in targets:
            if queue.decl.name not in taken and queue.offer(letter.copy()):
                taken.add(queue.decl.name)
        return bool(targets) and all(queue.decl.name in taken for queue in targets)


def _with_death(message: Message, queue: str, reason: str) -> dict[str, Any]:
    """Make the headers RabbitMQ makes of a dead letter, newest death first."""
    headers = dict(message.headers)
    deaths: list[dict[str, Any]] = list(headers.get("x-death") or [])
    same = next((death for death in deaths if (death["queue"], death["reason"]) == (queue, reason)), None)
    death = {
        "count": (same["count"] if same else 0) + 1,
        "exchange": message.exchange,
        "queue": queue,
        "reason": reason,
        "routing-keys": [message.routing_key],
        "time": int(time.time()),
    }
    if message.properties.expiration is not None:
        death["original-expiration"] = message.properties.expiration
    headers["x-death"] = [death, *(other for other in deaths if other is not same)]
    headers.setdefault("x-first-death-exchange", message.exchange)
    headers.setdefault("x-first-death-queue", queue)
    headers.setdefault("x-first-death-reason", reason)
    return headers


def _require_equal(wanted: QueueDecl, current: QueueDecl) -> None:
    pairs = [
        ("durable", wanted.durable, current.durable),
        ("auto_delete", wanted.auto_delete, current.auto_delete),
        *(
            (key, wanted.arguments.get(key), current.arguments.get(key))
            for key in sorted({*wanted.arguments, *current.arguments})
        ),
    ]
    for name, want, have in pairs:
        if want != have:
            raise _inequivalent(name, "queue", wanted.name, want, have)


def _inequivalent(argument: str, kind: str, name: str, wanted: object, current: object) -> BrokerError:
    text = (
        f"inequivalent arg '{argument}' for {kind} '{name}': received '{wanted}' but current is '{current}'"
    )
    return BrokerError("immutable_arguments", text)
