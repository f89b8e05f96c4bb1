"""Runs a plan: declares as the operator does, and runs each document as a pod does, in one process."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING, Any

from lunaq_operator.local.plan import topology
from lunaq_runtime import codecs, headers
from lunaq_runtime.app import App
from lunaq_runtime.brokers.amqp import AmqpBroker
from lunaq_runtime.brokers.memory import MemoryBroker, MemoryServer
from lunaq_runtime.ids import exchange_name
from lunaq_runtime.message import Outgoing
from lunaq_runtime.policy import DENY_ALL
from lunaq_runtime.topology import dead_letter_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lunaq_operator.local.plan import Plan
    from lunaq_runtime.brokers.base import Broker
    from lunaq_runtime.entries.model import Queue
    from lunaq_runtime.ids import Id
    from lunaq_runtime.message import Properties
    from lunaq_runtime.policy import Policy


_POLL = 0.02
"""Seconds between two looks at what gives no signal."""


class FixedPolicies:
    """Rights that do not change while we run; `App` asks for them as it asks a pod's policy file."""

    def __init__(self, policies: Mapping[Id, Policy]) -> None:
        self._policies = policies

    def policy(self, consumer_id: Id) -> Policy:
        return self._policies.get(consumer_id, DENY_ALL)

    def on_change(self, callback: Callable[[], None]) -> None:
        """Never call back: nothing changes."""


class LocalRun:
    """A plan at work: on memory brokers, or on the one at `broker_url` (which has its credentials).

    `start`, then `publish` and look; `stop` at the end.
    """

    def __init__(self, plan: Plan, broker_url: str = "") -> None:
        self._plan = plan
        self._url = broker_url
        drivers = {queue.driver for queue in plan.queues.values()}
        self._servers = {driver: MemoryServer() for driver in drivers}
        self._brokers = {driver: self._connection(driver, "lunaq run") for driver in drivers}
        self._apps: list[App] = []

    @property
    def ready(self) -> bool:
        """Whether every consumer consumes."""
        return all(app.ready for app in self._apps)

    @property
    def broken(self) -> dict[Id, str]:
        """Consumers whose handler did not load, and why."""
        return {consumer: why for app in self._apps for consumer, why in app.broken.items()}

    async def start(self) -> None:
        """Connect, declare, and start all consumers; BrokerError where the broker says no."""
        for driver, broker in self._brokers.items():
            await broker.connect()
            await broker.declare(topology(self._plan, driver, alone=not self._url))
        policies = FixedPolicies(self._plan.policies)
        for document in self._plan.documents:
            label = ", ".join(map(str, document.consumers))
            brokers = {driver: self._connection(driver, label) for driver in document.drivers}
            app = App(document, brokers, policies)
            await app.start()
            self._apps.append(app)

    async def until_ready(self) -> None:
        """Wait until every consumer consumes, however long that takes."""
        while not self.ready:  # noqa: ASYNC110 - readiness is asked for, as probes do
            await asyncio.sleep(_POLL)

    async def publish(self, queue_id: Id, value: Any, more: Mapping[str, Any] | None = None) -> str:
        """Publish as a handler does, and return the message's ID; `more` are its headers.

        KeyError where the plan has no such queue.
        """
        queue = self._plan.queues[queue_id]
        body, content_type = codecs.encode(value, queue.codec)
        message_id = str(uuid.uuid4())
        properties, _ = headers.to_properties(
            dict(more or {}), content_type, int(time.time()), message_id, map_priority=True
        )
        await self._brokers[queue.driver].publish(_outgoing(queue, body, properties))
        return message_id

    async def depth(self, queue_id: Id, *, dead: bool = False) -> int:
        """Count the messages that are ready in a queue, or in its dead letter queue."""
        queue = self._plan.queues[queue_id]
        name = dead_letter_name(queue) if dead else queue.queue_name
        return (await self._brokers[queue.driver].queue_info(name)).ready

    def messages(self, queue_id: Id, *, dead: bool = False) -> list[tuple[Any, Properties]]:
        """Look at what is ready in a queue of a memory broker, decoded; nothing is consumed."""
        queue = self._plan.queues[queue_id]
        name = dead_letter_name(queue) if dead else queue.queue_name
        ready = self._servers[queue.driver].queue(name).messages()
        return [
            (codecs.decode(one.body, one.properties.content_type, queue.codec), one.properties)
            for one in ready
        ]

    async def wait_failed(self) -> str:
        """Wait until a consumer cannot go on, and tell why."""
        waiting = [asyncio.ensure_future(app.wait_failed()) for app in self._apps]
        if not waiting:
            await asyncio.Event().wait()
        done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return str(done.pop().result())

    async def stop(self) -> None:
        """Let running handlers finish, and close."""
        await asyncio.gather(*(app.drain() for app in self._apps))
        for broker in self._brokers.values():
            await broker.close()

    def _connection(self, driver: Id, name: str) -> Broker:
        if self._url:
            return AmqpBroker(self._url, connection_name=name)
        return MemoryBroker(self._servers.setdefault(driver, MemoryServer()))


def _outgoing(queue: Queue, body: bytes, properties: Properties) -> Outgoing:
    if queue.observe:  # its owner's exchanges are not ours to know; the default one reaches every queue
        return Outgoing("", queue.queue_name, body, properties)
    return Outgoing(exchange_name(queue.queue_name), "", body, properties)
