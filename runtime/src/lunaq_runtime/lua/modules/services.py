"""What the Lua states of one process share; `runner` and the local mode make one, `app` hands it on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lunaq_runtime.entries.model import Store
from lunaq_runtime.lua.modules.metrics import HandlerMetrics
from lunaq_runtime.lua.modules.store import Stores

if TYPE_CHECKING:
    from lunaq_runtime.entries.model import Document


@dataclass(frozen=True, slots=True)
class Services:
    """The process' stores, and the metrics that handlers keep."""

    stores: Stores = field(default_factory=Stores)
    metrics: HandlerMetrics = field(default_factory=HandlerMetrics)

    @classmethod
    def of(cls, document: Document) -> Services:
        """Make those of a document: its stores, and one for each consumer, of the consumer's ID."""
        own = {consumer: Store(consumer) for consumer in document.consumers}
        others = {*document.queues, *document.drivers} - {*own, *document.stores}
        stores = Stores({**own, **document.stores}.values(), {str(one) for one in others})
        return cls(stores=stores)
