"""Publishing by a task and telling a callback: where a message cannot take its broker's fast path.

Called by `amqp.broker`, and by whoever wraps a Broker.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from lunaq_runtime.brokers.base import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_running: set[asyncio.Task[None]] = set()


def publish_in_task(
    publishing: Coroutine[Any, Any, None], done: Callable[[BrokerError | None], None]
) -> None:
    """Run `publishing` and call `done` once, later, with None or with the BrokerError it ended in."""
    task = asyncio.get_running_loop().create_task(publishing)
    _running.add(task)

    def finished(_: asyncio.Task[None]) -> None:
        _running.discard(task)
        if task.cancelled():
            done(BrokerError("closed", "cannot publish: it was cancelled"))
            return
        match task.exception():
            case BrokerError() | None as refusal:
                done(refusal)
            case error:
                done(BrokerError("connection", f"cannot publish: {type(error).__name__}: {error}"))

    task.add_done_callback(finished)
