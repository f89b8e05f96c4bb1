"""Whether a name that is about to be granted at the broker belongs to an object of the other kind as well.

RabbitMQ's permissions go by name alone: with an exchange and a queue of the same name, a user that may read
the one may bind the other, and a binding outlives its user (design.md section 3). Called by `user`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lunaq_runtime import ids
from lunaq_runtime.brokers.base import queue_exists

if TYPE_CHECKING:
    from lunaq_operator.broker_users import Grants
    from lunaq_operator.reconcile.context import Context
    from lunaq_operator.reconcile.managements import Users
    from lunaq_operator.store import Key


async def find(context: Context, broker: Key, users: Users, grants: Grants) -> str:
    """Say which name is taken, empty where none is; each is asked for once. Raises BrokerError.

    Of the exchanges only those of the own queue and of Queues with a `queueName`: what has an ID for a name
    has a colon in it, and only operators declare that.
    """
    pooled = context.pool.get(broker)
    if pooled is None or not pooled.broker.connected:
        return ""  # for a moment: the Queue is Ready, or has been
    retry = "" if grants.queue is None else ids.retry_exchange_name(grants.queue)
    wishes = [] if grants.queue is None else [("exchange", grants.queue)]
    wishes += [("queue", name) for name in grants.exchanges if ":" not in name or name == retry]
    for kind, name in wishes:
        if (kind, name) in users.checked:
            continue
        exists = pooled.broker.exchange_exists if kind == "exchange" else partial(queue_exists, pooled.broker)
        if await exists(name):
            return (
                f"the broker has an exchange and a queue named {name}, and its permissions go by name alone; "
                "rename or delete one of them, or set the Broker's access to Shared"
            )
        users.checked.add((kind, name))
    return ""
