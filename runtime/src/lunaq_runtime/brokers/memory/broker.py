"""A connection to the memory broker, and its subscriptions; `brokers.base` is the contract."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING

from lunaq_runtime.brokers.base import BrokerError, QueueInfo, ServerInfo
from lunaq_runtime.brokers.features import MEMORY
from lunaq_runtime.brokers.memory.server import MemoryServer
from lunaq_runtime.message import Delivery

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lunaq_runtime.brokers.memory.queue import Clock, MemoryQueue, Message
    from lunaq_runtime.message import Outgoing, Properties
    from lunaq_runtime.topology import Topology


class MemoryBroker:
    """A Broker in this process.

    `server` is given where several connections share one broker; `clock` is the running loop unless given.
    """

    def __init__(self, server: MemoryServer | None = None, *, clock: Clock | None = None) -> None:
        self.backend = server or MemoryServer(clock)
        self._state = "new"
        self._subscriptions: list[MemorySubscription] = []
        self._answers: list[tuple[Callable[[BrokerError | None], None], BrokerError | None]] = []

    @property
    def connected(self) -> bool:
        return self._state == "connected"

    @property
    def server(self) -> ServerInfo:
        return ServerInfo(MEMORY.announced, "")

    @property
    def published(self) -> int:
        """Count the messages the broker has taken from publishers, over all connections."""
        return self.backend.published

    def messages(self, queue: str) -> list[tuple[bytes, Properties]]:
        """List what is ready in a queue, in the order of delivery, without consuming it."""
        return [(message.body, message.own_properties()) for message in self.backend.queue(queue).messages()]

    async def connect(self) -> None:
        if self._state == "new":
            self.backend.on_queue_declared.append(self._queue_declared)
            self._state = "connected"
        self._require_connection()

    async def declare(self, topology: Topology) -> None:
        self._require_connection()
        for exchange in topology.exchanges:
            self.backend.declare_exchange(exchange)
        for queue in topology.queues:
            self.backend.declare_queue(queue)
        for binding in topology.bindings:
            self.backend.bind(binding)

    async def delete_queue(self, name: str) -> None:
        self._require_connection()
        self.backend.delete_queue(name)

    async def delete_exchange(self, name: str) -> None:
        self._require_connection()
        self.backend.delete_exchange(name)

    async def queue_info(self, name: str) -> QueueInfo:
        self._require_connection()
        queue = self.backend.queue(name)
        return QueueInfo(queue.depth, len(queue.consumers))

    async def exchange_exists(self, name: str) -> bool:
        self._require_connection()
        return name in self.backend.exchanges

    async def consume(
        self,
        queue: str,
        *,
        prefetch: int,
        on_deliveries: Callable[[list[Delivery]], None],
        consumer_tag: str = "",
        exclusive: bool = False,
        no_ack: bool = False,
    ) -> MemorySubscription:
        del consumer_tag  # only a real broker shows it to anybody
        self._require_connection()
        target = self.backend.queue(queue)
        if target.exclusive or (exclusive and target.consumers):
            raise BrokerError("access_refused", f"queue '{queue}' is in exclusive use")
        target.exclusive = exclusive
        subscription = MemorySubscription(queue, on_deliveries, 0 if no_ack else prefetch, no_ack=no_ack)
        self._subscriptions.append(subscription)
        subscription.attach(target)
        return subscription

    async def publish(self, message: Outgoing, *, timeout: float = 30.0) -> None:  # noqa: ASYNC109
        del timeout  # the answer is always there at once
        self._require_connection()
        self.backend.publish(message)
        # As on a real broker others get their turn meanwhile; a publisher in a loop starves nobody.
        await asyncio.sleep(0)

    def publish_soon(
        self, message: Outgoing, done: Callable[[BrokerError | None], None], *, timeout: float = 30.0
    ) -> None:
        del timeout  # the answer is always there at once
        refusal = None
        try:
            self._require_connection()
            self.backend.publish(message)
        except BrokerError as error:
            refusal = error
        self._answers.append((done, refusal))
        if len(self._answers) == 1:
            asyncio.get_running_loop().call_soon(self._answer)

    def _answer(self) -> None:
        """Tell all publishers of this turn of the loop."""
        answers, self._answers = self._answers, []
        for done, refusal in answers:
            try:
                done(refusal)
            except Exception as error:  # noqa: BLE001 - one publisher's defect must not silence the others
                context = {"message": "a publisher's callback raised", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)

    def interrupt(self) -> None:
        """Act as if the connection broke and was made again: what is unsettled goes back to its queue."""
        self._require_connection()
        for subscription in self._subscriptions:
            subscription.disconnect()
        for subscription in self._subscriptions:
            if queue := self.backend.queues.get(subscription.name):
                subscription.queue_declared(queue)

    async def close(self) -> None:
        if self._state == "connected":
            self.backend.on_queue_declared.remove(self._queue_declared)
            for subscription in self._subscriptions:
                await subscription.close()
            self._subscriptions.clear()
        self._state = "closed"

    def _queue_declared(self, queue: MemoryQueue) -> None:
        for subscription in self._subscriptions:
            subscription.queue_declared(queue)

    def _require_connection(self) -> None:
        if self._state == "new":
            raise BrokerError("connection", "the memory broker is not connected yet")
        if self._state == "closed":
            raise BrokerError("closed", "the connection to the memory broker is closed")


class MemoryDelivery(Delivery):
    """A delivery that copies its message's properties only for somebody who looks at them.

    `counted`: the queue tells in a header how often the message has been returned.
    """

    __slots__ = ("_returns", "_source")

    def __init__(self, queue: str, tag: int, message: Message, generation: int, *, counted: bool) -> None:
        self.queue = queue
        self.tag = tag
        self.body = message.body
        self.redelivered = message.returns > 0
        self.generation = generation
        self._exchange = message.exchange
        self._routing_key = message.routing_key
        self._source = message
        self._returns = message.returns if counted else 0

    @property
    def properties(self) -> Properties:
        try:
            return self._properties
        except AttributeError:
            count = {"x-delivery-count": self._returns} if self._returns else {}
            self._properties = properties = self._source.own_properties(**count)
            return properties

    @property
    def content_type(self) -> str | None:
        return self._source.properties.content_type

    @property
    def bare(self) -> bool:
        return not (self._source.headers or self._returns)


class MemorySubscription:
    """A consumer on a memory queue, and what it has not settled yet."""

    def __init__(
        self, queue: str, on_deliveries: Callable[[list[Delivery]], None], prefetch: int, *, no_ack: bool
    ) -> None:
        self.name = queue
        self._on_deliveries = on_deliveries
        self._prefetch = prefetch
        self._no_ack = no_ack
        self._queue: MemoryQueue | None = None
        self._wanted = True
        self._generation = 0
        self._tags = count(1)
        self._unsettled: dict[int, Message] = {}
        self._batch: list[Delivery] = []

    @property
    def active(self) -> bool:
        return self._wanted and self._queue is not None

    def alive(self, delivery: Delivery) -> bool:
        return self._queue is not None and delivery.generation == self._generation

    def settle(self, *, ack: Sequence[Delivery] = (), requeue: Sequence[Delivery] = ()) -> None:
        for delivery in ack:
            if delivery.generation == self._generation:
                self._unsettled.pop(delivery.tag, None)
        for delivery in requeue:
            if delivery.generation == self._generation:
                self._give_back(delivery.tag)
        if self._queue:
            self._queue.wake()

    async def cancel(self) -> None:
        self._wanted = False
        if self._queue:
            self._queue.detach(self)

    async def close(self) -> None:
        await self.cancel()
        self._return_unsettled()
        self._queue = None

    def attach(self, queue: MemoryQueue) -> None:
        """Start consuming from `queue`, as a new generation."""
        self._queue = queue
        self._generation += 1
        self._unsettled.clear()
        queue.attach(self)

    def disconnect(self) -> None:
        """Give everything back, as a broker does when a connection breaks."""
        if self._queue:
            self._queue.detach(self)
        self._return_unsettled()
        self._queue = None
        self._generation += 1

    def queue_declared(self, queue: MemoryQueue) -> None:
        """Consume again, from a queue that was deleted and declared again or after a broken connection."""
        if self._wanted and self._queue is None and queue.decl.name == self.name:
            self.attach(queue)

    def has_room(self) -> bool:
        """Whether the prefetch allows one more."""
        return not self._prefetch or len(self._unsettled) < self._prefetch

    def take(self, message: Message) -> None:
        """Note a message for this turn's batch."""
        tag = next(self._tags)
        if not self._no_ack:
            self._unsettled[tag] = message
        counted = bool(message.returns and self._queue and self._queue.quorum)
        self._batch.append(MemoryDelivery(self.name, tag, message, self._generation, counted=counted))

    def hand_over(self) -> None:
        """Deliver this turn's batch; what the callback raises is the loop's to report."""
        batch, self._batch = self._batch, []
        try:
            self._on_deliveries(batch)
        except Exception as error:  # noqa: BLE001 - one consumer's defect must not stop the broker
            context = {"message": f"on_deliveries of queue '{self.name}' raised", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)

    def lost_queue(self) -> None:
        """Forget the deleted queue: what was unsettled is gone with it."""
        self._queue = None
        self._generation += 1
        self._unsettled.clear()

    def _return_unsettled(self) -> None:
        for tag in list(self._unsettled):
            self._give_back(tag)

    def _give_back(self, tag: int) -> None:
        message = self._unsettled.pop(tag, None)
        if message and self._queue:
            self._queue.give_back(message)
