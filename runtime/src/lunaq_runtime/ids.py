"""Queue IDs and the broker-side names that follow from them; used by every other module.

An ID is `<namespace>:<name>`, split at the first colon (lua-api.md 2.1): what Lua, RBAC and logs say.
Broker-side names are derived in this one place (design.md section 4).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Id:
    """An entry's ID; `namespace` is empty where the text had no colon."""

    namespace: str
    name: str

    @classmethod
    def parse(cls, text: str, default_namespace: str = "") -> Id:
        """Split `text` at its first colon; without one, the namespace is `default_namespace`."""
        namespace, colon, name = text.partition(":")
        return cls(namespace, name) if colon else cls(default_namespace, text)

    def __str__(self) -> str:
        return f"{self.namespace}:{self.name}"


def exchange_name(queue: str) -> str:
    """Name the exchange that publishers of the broker-side `queue` use."""
    return f"{queue}.x"


def retry_exchange_name(queue: str) -> str:
    """Name the private exchange through which failed deliveries of `queue` travel."""
    return f"{queue}.retry"


def retry_queue_name(queue: str, delay_ms: int) -> str:
    """Name the queue in which failed deliveries of `queue` wait `delay_ms` milliseconds."""
    return f"{queue}.retry.{delay_ms}"


def dead_queue_name(queue: str) -> str:
    """Name the default dead letter queue of `queue`."""
    return f"{queue}.dead"
