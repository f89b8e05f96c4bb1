"""Derives all policies when an RBAC object changed, and has the Consumers looked at whose policy did.

One pass over all Consumers takes milliseconds, and so a withdrawn right does not wait behind a thousand
Consumers that nothing happened to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lunaq_operator import kinds
from lunaq_operator.references import Work, service_account_of

if TYPE_CHECKING:
    from lunaq_operator.reconcile.context import Context
    from lunaq_operator.store import Key


async def reconcile(context: Context, _: Key) -> float | None:
    """Enqueue the Consumers whose derived policy is not the one they were last reconciled with."""
    rbac = context.rbac()
    for key, consumer in context.store[kinds.CONSUMERS].objects.items():
        derived = rbac.derive(key.namespace, key.name, service_account_of(consumer))
        if context.memory.derived.get(key) != derived:
            context.enqueue(Work(kinds.CONSUMERS.plural, key), urgent=True)
    return None
