"""The broker interface that worker, operator and tests program against (design.md section 5).

Two implementations, `memory` and `amqp`; `tests/broker` holds one conformance suite for both. All of it
runs on one event loop: callbacks come on that loop and must not block it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lunaq_runtime.message import Delivery, Outgoing
    from lunaq_runtime.topology import Topology


class BrokerError(Exception):
    """A broker said no, or could not be reached; `reason` is a word for machines.

    Reasons: `connection`, `timeout`, `nacked`, `unroutable`, `queue_not_found`, `access_refused`,
    `immutable_arguments` (it exists with others), `invalid_arguments` (the broker takes no such ones),
    `unsupported` (this kind of broker cannot do it safely), `encode_failed` (the message does not fit AMQP),
    `closed`. The text names the object, never a credential.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """A passive declare's answer: messages ready for delivery, and consumers."""

    ready: int
    consumers: int


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What the broker says it is at connect; empty texts where it says nothing."""

    product: str = ""
    version: str = ""


class Subscription(Protocol):
    """A consumer on one queue; it survives reconnects, with a new generation of deliveries."""

    @property
    def active(self) -> bool:
        """Whether the broker holds a live consumer of ours right now."""

    def alive(self, delivery: Delivery) -> bool:
        """Whether settling `delivery` could still reach the broker: its channel is the open one.

        True also after `cancel`, false after a lost connection and after `close`: the broker has then put
        the message back, and a retry of ours would only double it. The same for all of one generation.
        """

    def settle(self, *, ack: Sequence[Delivery] = (), requeue: Sequence[Delivery] = ()) -> None:
        """Send acks and `nack requeue=true` for a batch; deliveries of a dead connection are skipped.

        Only `lunaq_runtime.settle` calls this.
        """

    async def cancel(self) -> None:
        """Stop deliveries, keep the channel open so that what is in flight can still be settled."""

    async def close(self) -> None:
        """Flush settlements and close the channel; whatever is unsettled goes back to the queue."""


class Broker(Protocol):
    """One connection to one broker (virtual host)."""

    @property
    def connected(self) -> bool:
        """Whether a connection is up right now."""

    @property
    def server(self) -> ServerInfo:
        """What the broker said of itself at the last connect."""

    async def connect(self) -> None:
        """Connect once or raise BrokerError; afterwards the implementation reconnects by itself."""

    async def declare(self, topology: Topology) -> None:
        """Declare all objects, idempotently.

        Raises BrokerError `immutable_arguments` if one exists with other arguments (nothing is ever
        deleted to change it), `access_refused`, `connection`, `timeout`.
        """

    async def delete_queue(self, name: str) -> None:
        """Delete a queue, whatever it holds; a missing one is no error."""

    async def delete_exchange(self, name: str) -> None:
        """Delete an exchange; a missing one is no error."""

    async def queue_info(self, name: str) -> QueueInfo:
        """Ask by a passive declare, on a channel of its own; BrokerError `queue_not_found`."""

    async def exchange_exists(self, name: str) -> bool:
        """Ask by a passive declare, on a channel of its own."""

    async def consume(
        self,
        queue: str,
        *,
        prefetch: int,
        on_deliveries: Callable[[list[Delivery]], None],
        consumer_tag: str = "",
        exclusive: bool = False,
        no_ack: bool = False,
    ) -> Subscription:
        """Start consuming; `on_deliveries` gets what arrived together, in order, on the event loop.

        With `no_ack` the broker forgets a message as it sends it, and settling sends nothing. Raises
        BrokerError `queue_not_found`, `access_refused`, `connection`, `timeout`.
        """

    async def publish(self, message: Outgoing, *, timeout: float = 30.0) -> None:  # noqa: ASYNC109
        """Publish with `mandatory` and await the confirm; returns only once the broker has it.

        Raises BrokerError: `queue_not_found` (no such exchange, probed on a channel of its own at first
        use), `unroutable`, `nacked`, `timeout` (seconds), `connection`.
        """

    def publish_soon(
        self, message: Outgoing, done: Callable[[BrokerError | None], None], *, timeout: float = 30.0
    ) -> None:
        """Publish as `publish` does, without a task for each message; call it on the event loop.

        `done` is called exactly once, on the loop and never from inside this call: with None once the broker
        has the message, else with the error that `publish` would have raised. `message` must not change
        until then.
        """

    async def close(self) -> None:
        """Await outstanding confirms for a moment, then close channels and connection."""


async def queue_exists(broker: Broker, name: str) -> bool:
    """Ask by `queue_info`; BrokerError for anything but a queue that is not there."""
    try:
        await broker.queue_info(name)
    except BrokerError as error:
        if error.reason != "queue_not_found":
            raise
        return False
    return True
