"""What each broker can do, as data: asked at connect, declare and delete, and shown as a table in docs.

The one place that tells brokers apart. A broker that is not named here is taken for one that speaks as
RabbitMQ does, and must announce publisher confirms.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Feature(Enum):
    """Something Lunaq would use; the text is the row's name in `docs/brokers.md`."""

    CONFIRMS = "publisher confirms"
    ANNOUNCED = "announces its capabilities at login"
    UNROUTABLE = "tells an unroutable message from a full queue"
    PERSISTENCE = "keeps durable queues and persistent messages over a restart"
    QUORUM = "replicated queues (`type: Quorum`)"
    DELAYS = "retries wait at the broker and are moved back without a gap"
    EXACT_DELAYS = "a delay ends on time"
    DELIVERY_COUNT = "counts returns of a message (`x-delivery-count`)"
    CANCEL_NOTICE = "says so when a consumer's queue is deleted"
    READY_COUNT = "counts ready messages apart from those in flight"
    DEATHS = "writes where a message has waited into its headers (`x-death`)"
    EXPIRATION = "reads a message's own `expiration` as a time to live"
    EMPTY_TABLES = "keeps every message that has an empty table in its headers"
    DRIFT = "compares the arguments of what exists"
    OWNER = "keeps the owner mark on an exchange"
    SAFE_DELETE = "deletes a queue that others dead-letter to"
    LENGTHS = "bounds a queue (`maxLength`) without losing a retry that meets it full"
    QUEUE_EXPIRY = "deletes a queue after time unused (`expires`)"
    BLOCKED = "tells publishers that it is out of memory or disk"
    CLOSED_CHANNELS = "answers a refusal by closing the channel, not the connection"


CONSEQUENCES: dict[Feature, str] = {
    Feature.CONFIRMS: "refused at connect",
    Feature.ANNOUNCED: "asked by `confirm.select` at connect; refused there if the broker says no",
    Feature.UNROUTABLE: "the error is `nacked` for both",
    Feature.PERSISTENCE: "everything ends with the process: for tests and `lunaq run`",
    Feature.QUORUM: "refused when the queue is declared: set `type: Classic`",
    Feature.DELAYS: "refused when the queue is declared",
    Feature.EXACT_DELAYS: "delays and expiries end late, by up to the host's `housekeepingCheckPeriod`",
    Feature.DELIVERY_COUNT: "a message that ends its process is not told from innocent ones",
    Feature.CANCEL_NOTICE: "asked every 5 s; a queue made again in between is noticed if only we consume it",
    Feature.READY_COUNT: "a queue's depth includes what is in flight",
    Feature.DEATHS: "nothing: Lunaq counts in headers of its own",
    Feature.EXPIRATION: "publishing with one is refused; what others publish with one is dead at once",
    Feature.EMPTY_TABLES: "an empty table in headers is published as no value",
    Feature.DRIFT: "a changed setting is neither applied nor reported",
    Feature.OWNER: "two clusters on one virtual host are not told apart",
    Feature.SAFE_DELETE: "`deletionPolicy: Delete` is refused, for the whole broker may end over it",
    Feature.LENGTHS: "refused when the queue is declared",
    Feature.QUEUE_EXPIRY: "refused when the queue is declared",
    Feature.BLOCKED: "publishing waits, and ends in `timeout`",
    Feature.CLOSED_CHANNELS: "a refusal costs one reconnect",
}
"""What Lunaq does where a feature is missing."""


@dataclass(frozen=True, slots=True)
class Product:
    """A kind of broker: `announced` begins what it says it is; `tested` are the suite's versions."""

    title: str
    announced: str
    tested: tuple[str, ...]
    missing: frozenset[Feature] = frozenset()

    def has(self, feature: Feature) -> bool:
        """Tell whether this broker has a feature."""
        return feature not in self.missing


RABBITMQ = Product("RabbitMQ", "RabbitMQ", ("3.10", "4.0", "4.3"))
QPID = Product(
    "Apache Qpid Broker-J",
    "Apache Qpid Broker-J",
    ("9.2",),
    frozenset(
        {
            Feature.ANNOUNCED,
            Feature.UNROUTABLE,
            Feature.QUORUM,
            Feature.EXACT_DELAYS,
            Feature.DELIVERY_COUNT,
            Feature.CANCEL_NOTICE,
            Feature.READY_COUNT,
            Feature.DEATHS,
            Feature.EXPIRATION,
            Feature.EMPTY_TABLES,
            Feature.DRIFT,
            Feature.OWNER,
            Feature.SAFE_DELETE,
            Feature.LENGTHS,
            Feature.QUEUE_EXPIRY,
            Feature.BLOCKED,
            Feature.CLOSED_CHANNELS,
        }
    ),
)
MEMORY = Product("memory (in the process)", "Lunaq memory broker", ("",), frozenset({Feature.PERSISTENCE}))
PRODUCTS = (RABBITMQ, QPID, MEMORY)

_OTHER = Product("another AMQP 0-9-1 broker", "", ())


def product_of(announced: str) -> Product:
    """Find a broker by what it says it is (`product` of its server properties)."""
    for product in PRODUCTS:
        if announced.startswith(product.announced):
            return product
    return _OTHER
