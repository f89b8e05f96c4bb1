"""Keeps an app of one document running, and changes over to rotated credentials; `main` runs one.

When the credentials change, a second app connects with the new ones, and the first drains once the second
consumes: at no time is nobody at work, and no connection is cut (design.md section 6).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from lunaq_runtime.app import App
from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.lua.modules.services import Services

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from lunaq_runtime.brokers.base import Broker
    from lunaq_runtime.entries.model import Document
    from lunaq_runtime.ids import Id
    from lunaq_runtime.policy_source import PolicySource
    from lunaq_runtime.spans import Spans
    from lunaq_runtime.worker import Counters

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
CHANGEOVER_SECONDS = 30.0
"""Time for an app with new credentials to consume; then the old one stays, and it is tried again."""


class Runner:
    """One document at work. `make_brokers` makes unconnected brokers, one per driver that is needed.

    `credentials` returns the pair of the moment (BrokerError if there is none); None: they never change.
    `spans` records traces.
    """

    def __init__(
        self,
        document: Document,
        policies: PolicySource,
        make_brokers: Callable[[], Mapping[Id, Broker]],
        credentials: Callable[[], tuple[str, str]] | None = None,
        spans: Spans | None = None,
    ) -> None:
        self.services = Services.of(document)
        self._document = document
        self._policies = policies
        self._make_brokers = make_brokers
        self._credentials = credentials
        self._spans = spans
        self._brokers: Mapping[Id, Broker] = {}
        self._app: App | None = None
        self._pair: tuple[str, str] | None = None
        self._reconnects = 0

    @property
    def ready(self) -> bool:
        """Whether every consumer consumes."""
        return self._app is not None and self._app.ready

    @property
    def healthy(self) -> bool:
        """Whether the process makes progress."""
        return self._app is None or self._app.healthy

    @property
    def reconnects(self) -> int:
        """Count the connections that came back."""
        return self._reconnects + _reconnects(self._brokers)

    def counters(self) -> Iterator[tuple[str, str, Counters]]:
        """Yield queue, consumer and counters of each consumer, as metrics show them."""
        if self._app is None:
            return
        for consumer, counters in self._app.counters.items():
            queue = self._document.consumers[consumer].queue
            yield str(queue), str(consumer), counters

    async def start(self) -> None:
        """Begin, and return; what cannot be reached is tried again in the background."""
        self._pair = self._current_pair()
        self._app, self._brokers = await self._make_app()

    async def run(self) -> str:
        """Run until the process must end, and tell why; cancel it to stop, then `drain`."""
        while True:
            app = self._require_app()
            failed = asyncio.ensure_future(app.wait_failed())
            try:
                done, _ = await asyncio.wait({failed}, timeout=POLL_SECONDS)
            finally:
                failed.cancel()
            if done:
                return str(failed.result())
            pair = self._current_pair()
            if pair is not None and pair != self._pair and app.ready:
                await self._change_over(app, pair)

    async def drain(self) -> None:
        """Let running handlers finish, settle, and close."""
        if self._app:
            await self._app.drain()

    async def _change_over(self, old: App, pair: tuple[str, str]) -> None:
        logger.info("the credentials have changed: connecting with the new ones")
        old_brokers = self._brokers
        if any(consumer.exclusive for consumer in self._document.consumers.values()):
            # An exclusive consumer admits no second one, not even its own successor.
            await self._retire(old, old_brokers)
            self._app, self._brokers = await self._make_app()
            self._pair = pair
            return
        new, brokers = await self._make_app()
        try:
            async with asyncio.timeout(CHANGEOVER_SECONDS):
                while not new.ready:  # noqa: ASYNC110 - many things make an app ready, none tells
                    await asyncio.sleep(POLL_SECONDS / 10)
        except TimeoutError:
            logger.error(  # noqa: TRY400 - the time-out says nothing more
                "nothing consumes with the new credentials after %g s: the old connection stays",
                CHANGEOVER_SECONDS,
            )
            await self._retire(new, brokers)
            return
        except asyncio.CancelledError:
            await self._retire(new, brokers)
            raise
        self._app, self._brokers, self._pair = new, brokers, pair
        await self._retire(old, old_brokers)
        logger.info("the new credentials are in use")

    async def _retire(self, app: App, brokers: Mapping[Id, Broker]) -> None:
        self._policies.forget(app)
        self._reconnects += _reconnects(brokers)
        await app.drain()

    async def _make_app(self) -> tuple[App, Mapping[Id, Broker]]:
        brokers = self._make_brokers()
        app = App(self._document, brokers, self._policies, self.services, self._spans)
        await app.start()
        return app, brokers

    def _current_pair(self) -> tuple[str, str] | None:
        try:
            return self._credentials() if self._credentials else None
        except BrokerError:
            return None  # the brokers say so where it matters

    def _require_app(self) -> App:
        if self._app is None:
            raise RuntimeError("start the runner first")
        return self._app


def _reconnects(brokers: Mapping[Id, Broker]) -> int:
    return sum(getattr(broker, "reconnects", 0) for broker in brokers.values())
