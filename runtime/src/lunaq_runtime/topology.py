"""What one Queue is on the broker: exchanges, queues and bindings, as plain data (design.md section 4).

Declared by one pure description and one applier (`brokers`), shared by the operator, the local mode and
the conformance suite.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ExchangeDecl:
    """A durable exchange; `type` is `fanout` or `direct`."""

    name: str
    type: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QueueDecl:
    """A queue with its `x-` arguments."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    durable: bool = True
    auto_delete: bool = False


@dataclass(frozen=True, slots=True)
class Binding:
    """`queue` receives what `exchange` gets with `routing_key`."""

    exchange: str
    queue: str
    routing_key: str = ""


@dataclass(frozen=True, slots=True)
class Topology:
    """All objects of one Queue, in the order in which they must be declared."""

    exchanges: tuple[ExchangeDecl, ...] = ()
    queues: tuple[QueueDecl, ...] = ()
    bindings: tuple[Binding, ...] = ()
