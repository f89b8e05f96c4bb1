"""A stage for consumers: an App on any broker, spied on at the broker interface, with queues to talk by.

Handlers under test say what they do by publishing to `app:log`, and wait for `app:gate` to hold a message;
so no test has to sleep. Used by the worker's tests on the memory broker and on RabbitMQ alike.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from harness.waiting import eventually
from lunaq_runtime.app import App
from lunaq_runtime.brokers.soon import publish_in_task
from lunaq_runtime.entries.model import Consumer, Document, Driver, Handler, Queue, Retry
from lunaq_runtime.ids import Id
from lunaq_runtime.message import Delivery, Outgoing, Properties
from lunaq_runtime.policy import ALLOW_ALL, Policy
from lunaq_runtime.topology import Binding, ExchangeDecl, QueueDecl, Topology

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lunaq_runtime.brokers.base import Broker, BrokerError, QueueInfo, ServerInfo, Subscription
    from lunaq_runtime.spans import Spans

WORK = Id("app", "work")
CONSUMER = Id("app", "worker")
DRIVER = Id("app", "broker")

PRELUDE = """
local queue, time = require("queue"), require("time")
local function log(data) assert(queue.publish("app:log", data)) end
local function gate()
  while queue.info("app:gate").ready == 0 do time.sleep("5ms") end
end
"""


class SpySubscription:
    """A subscription whose settlements are noted, and can be lost on the way."""

    def __init__(self, spy: SpyBroker, inner: Subscription) -> None:
        self._spy = spy
        self._inner = inner

    @property
    def active(self) -> bool:
        return self._inner.active

    def alive(self, delivery: Delivery) -> bool:
        return self._inner.alive(delivery)

    def settle(self, *, ack: Sequence[Delivery] = (), requeue: Sequence[Delivery] = ()) -> None:
        self._spy.events += [("ack", delivery.properties.message_id or "") for delivery in ack]
        self._spy.events += [("requeue", delivery.properties.message_id or "") for delivery in requeue]
        if not self._spy.lose_settlements:
            self._inner.settle(ack=ack, requeue=requeue)

    async def cancel(self) -> None:
        await self._inner.cancel()
        self._spy.events.append(("cancel", ""))

    async def close(self) -> None:
        await self._inner.close()


class SpyBroker:
    """A broker that notes what passes, in order: `(what, message id)`.

    `confirm_gate`: publishes to exchanges whose name ends with `gated`, by default those of retries, are
    confirmed only once it is set. `refuse` may answer a publish with an error. With `lose_settlements`, no
    ack or nack reaches the broker.
    """

    def __init__(self, inner: Broker) -> None:
        self.inner = inner
        self.events: list[tuple[str, str]] = []
        self.confirm_gate = asyncio.Event()
        self.confirm_gate.set()
        self.gated = ".retry"
        self.refuse: Callable[[Outgoing], BrokerError | None] = lambda _message: None
        self.lose_settlements = False

    @property
    def connected(self) -> bool:
        return self.inner.connected

    @property
    def server(self) -> ServerInfo:
        return self.inner.server

    async def connect(self) -> None:
        await self.inner.connect()

    async def declare(self, topology: Topology) -> None:
        await self.inner.declare(topology)

    async def delete_queue(self, name: str) -> None:
        await self.inner.delete_queue(name)

    async def delete_exchange(self, name: str) -> None:
        await self.inner.delete_exchange(name)

    async def queue_info(self, name: str) -> QueueInfo:
        return await self.inner.queue_info(name)

    async def exchange_exists(self, name: str) -> bool:
        return await self.inner.exchange_exists(name)

    async def consume(
        self, queue: str, *, on_deliveries: Callable[[list[Delivery]], None], **options: Any
    ) -> SpySubscription:
        def noted(deliveries: list[Delivery]) -> None:
            self.events += [("deliver", delivery.properties.message_id or "") for delivery in deliveries]
            on_deliveries(deliveries)

        self.events.append(("consume", ""))
        return SpySubscription(self, await self.inner.consume(queue, on_deliveries=noted, **options))

    async def publish(self, message: Outgoing, *, timeout: float = 30.0) -> None:  # noqa: ASYNC109
        identity = message.properties.message_id or ""
        what = message.routing_key if message.exchange.endswith(".retry") else message.exchange
        if error := self.refuse(message):
            self.events.append((f"refuse {what}", identity))
            raise error
        self.events.append((f"publish {what}", identity))
        await self.inner.publish(message, timeout=timeout)
        if message.exchange.endswith(self.gated):
            await self.confirm_gate.wait()
        self.events.append((f"confirm {what}", identity))

    def publish_soon(
        self, message: Outgoing, done: Callable[[BrokerError | None], None], *, timeout: float = 30.0
    ) -> None:
        publish_in_task(self.publish(message, timeout=timeout), done)

    async def close(self) -> None:
        await self.inner.close()

    def of(self, message_id: str) -> list[str]:
        """List what happened to one message."""
        return [what for what, identity in self.events if identity == message_id]


class LivePolicies:
    """A policy that a test changes under a running app."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._callbacks: list[Callable[[], None]] = []

    def policy(self, consumer_id: Id) -> Policy:
        assert consumer_id == CONSUMER
        return self._policy

    def on_change(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def change(self, policy: Policy) -> None:
        self._policy = policy
        for callback in self._callbacks:
            callback()


class Stage:
    """One broker, an observer's connection to it, and the apps under test.

    `new_broker` makes another connection to the same broker; `spans` is what apps record traces with.
    """

    def __init__(self, new_broker: Callable[[], Broker]) -> None:
        self._new_broker = new_broker
        self.spans: Spans | None = None
        self.observer = new_broker()
        self._collected: dict[str, list[Delivery]] = {}
        self._open: list[App] = []
        self._spies: list[SpyBroker] = []

    async def open(self) -> None:
        await self.observer.connect()
        await self.observer.declare(
            Topology(
                exchanges=(ExchangeDecl("app:log.x", "fanout"), ExchangeDecl("app:gate.x", "fanout")),
                queues=(QueueDecl("app:log"), QueueDecl("app:gate")),
                bindings=(Binding("app:log.x", "app:log"), Binding("app:gate.x", "app:gate")),
            )
        )

    async def close(self) -> None:
        await self.open_gate(closing=True)
        for spy in self._spies:
            spy.confirm_gate.set()
        for app in self._open:
            await app.drain()
        await self.observer.close()

    async def start(self, source: str, *, policy: Policy = ALLOW_ALL, **options: Any) -> Running:
        """Start an app with one consumer on `app:work`, and wait until it consumes."""
        running = await self.prepare(source, policy=policy, **options)
        await running.app.start()
        await running.ready()
        return running

    async def start_on(self, bodies: dict[str, Any], source: str, **options: Any) -> Running:
        """Start an app on a queue that holds messages already, so that they arrive together.

        `bodies` are by message id.
        """
        first = await self.start(source, **options)
        await first.app.drain()
        for message_id, body in bodies.items():
            await self.send(body, message_id=message_id)
        return await self.start(source, **options)

    async def prepare(self, source: str, *, policy: Policy = ALLOW_ALL, **options: Any) -> Running:
        """Make an app; `options` are of Queue, Consumer or Handler, by their names."""
        handler = Handler(
            "handler.lua", PRELUDE + source, **_taken(options, "timeout", "memory_limit", "method")
        )
        queue_options = _taken(options, "retry", "codec", "type", "observe", "declare", "dead_letter")
        queue_options.setdefault("retry", Retry(max_attempts=3, delays_ms=(20,)))
        options.setdefault("drain_timeout", 30.0)
        document = Document(
            namespace="app",
            drivers={DRIVER: Driver(DRIVER, "memory")},
            queues={WORK: Queue(WORK, DRIVER, "app:work", **queue_options)},
            consumers={CONSUMER: Consumer(CONSUMER, WORK, handler, **options)},
        )
        broker = SpyBroker(self._new_broker())
        self._spies.append(broker)
        policies = LivePolicies(policy)
        app = App(document, {DRIVER: broker}, policies, spans=self.spans)
        self._open.append(app)
        return Running(app, broker, policies)

    async def crash(self, running: Running) -> None:
        """End an app as a killed process ends: nothing more is settled, the broker sees a dead connection."""
        running.broker.lose_settlements = True
        await running.broker.inner.close()
        self._open.remove(running.app)
        for worker in running.app._workers.values():
            tasks = [*worker._tasks, worker._main]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def send(
        self, value: Any = None, *, body: bytes | None = None, message_id: str = "m", **properties: Any
    ) -> None:
        """Publish to `app:work` as a foreign publisher does."""
        payload = json.dumps(value if value is not None else {"n": 1}).encode() if body is None else body
        await self.observer.publish(
            Outgoing("app:work.x", "", payload, Properties(message_id=message_id, **properties))
        )

    async def open_gate(self, *, closing: bool = False) -> None:
        """Let every handler that waits at the gate go on."""
        if not closing or not (await self.observer.queue_info("app:gate")).ready:
            await self.observer.publish(Outgoing("app:gate.x", "", b"1", Properties()))

    async def ready(self, queue: str) -> int:
        return (await self.observer.queue_info(queue)).ready

    async def holds(self, queue: str, count: int) -> None:
        """Wait until so many messages are ready: a broker tells nobody when it has put some back."""

        async def so_many() -> bool:
            return await self.ready(queue) == count

        await eventually(so_many, f"{count} messages ready in {queue}")

    async def collected(self, queue: str, count: int) -> list[Delivery]:
        """Take everything that comes to a queue from now on; wait until it is `count` messages."""
        if queue not in self._collected:
            found = self._collected[queue] = []
            waiting: list[Delivery] = []

            def take(deliveries: list[Delivery]) -> None:
                found.extend(deliveries)
                waiting.extend(deliveries)
                if subscriptions:
                    subscriptions[0].settle(ack=waiting)
                    waiting.clear()

            subscriptions: list[Subscription] = []
            subscriptions.append(await self.observer.consume(queue, prefetch=500, on_deliveries=take))
            take([])
        found = self._collected[queue]

        async def enough() -> bool:
            return len(found) >= count

        await eventually(enough, f"{count} messages in {queue}, {found!r}")
        return list(found)

    async def logged(self, count: int) -> list[Any]:
        """Wait until handlers have logged `count` times, and list what."""
        return [json.loads(delivery.body) for delivery in await self.collected("app:log", count)]

    async def dead(self, count: int = 1) -> list[Delivery]:
        """Wait for dead letters."""
        return await self.collected("app:work.dead", count)


class Running:
    """An app under test with its spies."""

    def __init__(self, app: App, broker: SpyBroker, policies: LivePolicies) -> None:
        self.app = app
        self.broker = broker
        self.policies = policies

    @property
    def counters(self) -> Any:
        return self.app.counters[CONSUMER]

    async def ready(self) -> None:
        async def is_ready() -> bool:
            return self.app.ready

        await eventually(is_ready, "the app to be ready")

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        async def holds() -> bool:
            return condition()

        await eventually(holds, f"{what}; events: {self.broker.events}")

    async def seen(self, what: str, message_id: str = "m", times: int = 1) -> None:
        """Wait until something has happened to a message so often."""
        await self.until(lambda: self.broker.of(message_id).count(what) >= times, f"'{what}' of {message_id}")


def _taken(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: options.pop(name) for name in names if name in options}
