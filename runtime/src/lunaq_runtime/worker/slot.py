"""A concurrency slot: one Lua state, and the run of one delivery in it at a time.

A state that was lost (out of memory, interrupted where it cannot be trusted) is made again for the next run.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Protocol

from lunaq_runtime import codecs
from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.lua.errors import INTERNAL, HandlerError
from lunaq_runtime.lua.requests import Finished, Settle
from lunaq_runtime.retry import (
    DECODE_ERROR,
    TOO_LARGE,
    Ack,
    Failed,
    HandedBack,
    Outcome,
    Poison,
    Succeeded,
    attempts_of,
    decide,
)
from lunaq_runtime.worker.context import message_context
from lunaq_runtime.worker.invoke import InvocationRun
from lunaq_runtime.worker.requests import MAX_BODY

if TYPE_CHECKING:
    from collections.abc import Callable

    from lunaq_runtime.entries.model import Consumer, Queue
    from lunaq_runtime.lua.host import MessageContext
    from lunaq_runtime.lua.requests import Request
    from lunaq_runtime.message import Delivery
    from lunaq_runtime.settle import Settler
    from lunaq_runtime.worker.counters import Counters
    from lunaq_runtime.worker.invoke import Invocation
    from lunaq_runtime.worker.requests import Requests
    from lunaq_runtime.worker.stepper import Stepper

logger = logging.getLogger(__name__)


class State(Protocol):
    """What a slot needs of `lua.state.LuaState`."""

    def start(self, context: MessageContext, body: Any) -> Invocation:
        """Begin an invocation."""


class Slot:
    """Runs deliveries one after the other; `make_state` is called in a thread."""

    def __init__(
        self,
        consumer: Consumer,
        queue: Queue,
        stepper: Stepper,
        make_state: Callable[[], State],
        requests: Requests,
        counters: Counters,
        clock: Callable[[], float],
    ) -> None:
        self._consumer = consumer
        self._queue = queue
        self._stepper = stepper
        self._make_state = make_state
        self._requests = requests
        self._counters = counters
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._state: State | None = None
        self._run: InvocationRun | None = None
        self._current: tuple[Settler, Delivery] | None = None
        self._abandoned = False

    async def load(self) -> None:
        """Load the handler; HandlerLoadError says what is wrong with it."""
        self._state = await self._stepper.call(self._make_state)

    def interrupt(self, error: HandlerError) -> None:
        """End the current run, if there is one; its message is handed back."""
        if self._run:
            self._run.interrupt(error)

    def abandon_if_overdue(self, grace: float) -> tuple[Settler, Delivery] | None:
        """Give up a run that should have ended `grace` seconds ago; whoever asked settles its delivery."""
        if self._run is None or self._abandoned or not self._run.overdue(grace):
            return None
        self._abandoned = True
        return self._current

    async def handle(self, settler: Settler, delivery: Delivery) -> None:
        """Run the handler on one delivery and settle it by the outcome; raises nothing."""
        if not settler.alive(delivery):
            settler.drop(delivery)
            return
        self._counters.delivered += 1
        try:
            body = self._decode(delivery)
        except _UndecodableError as error:
            self._counters.failed += 1
            self._settle(settler, delivery, error.poison)
            return
        self._current = settler, delivery
        self._counters.running += 1
        started = self._loop.time()
        try:
            finished, interrupted = await self._finish(settler, delivery, body)
        finally:
            self._current = None
            self._counters.running -= 1
            self._counters.ran(self._loop.time() - started)
        if self._abandoned:
            return
        if finished.state_lost:
            self._state = None
        if finished.error is not None and interrupted:
            if not finished.settled:
                self._settle(settler, delivery, HandedBack())
            return
        self._count(delivery, finished)
        if not finished.settled:
            self._settle(settler, delivery, _outcome(finished))

    def _decode(self, delivery: Delivery) -> Any:
        if len(delivery.body) > MAX_BODY:
            text = f"the body has {len(delivery.body)} bytes, more than {MAX_BODY}"
            raise _UndecodableError(Poison(TOO_LARGE, text))
        try:
            return codecs.decode(delivery.body, delivery.content_type, self._queue.codec)
        except codecs.CodecError as error:
            raise _UndecodableError(Poison(DECODE_ERROR, str(error))) from error

    async def _finish(self, settler: Settler, delivery: Delivery, body: Any) -> tuple[Finished, bool]:
        context = message_context(delivery, self._consumer)

        def start() -> Invocation:
            if self._state is None:
                self._state = self._make_state()
            return self._state.start(context, body)

        async def execute(request: Request) -> tuple[Any, ...]:
            if isinstance(request, Settle):
                return await self._settle_explicitly(settler, delivery, ack=request.ack)
            return await self._requests.execute(request)

        self._run = run = InvocationRun(self._stepper, start, execute, self._consumer.handler.timeout)
        try:
            return await run.finish(), run.interruption is not None
        except Exception as error:
            # Whatever broke, it is not the message's loss: the run counts as failed.
            logger.exception("consumer %s: the handler could not be run", self._consumer.id)
            failure = HandlerError(f"the handler could not be run: {error}", INTERNAL)
            return Finished(error=failure, state_lost=True), run.interruption is not None
        finally:
            self._run = None

    async def _settle_explicitly(self, settler: Settler, delivery: Delivery, *, ack: bool) -> tuple[Any, ...]:
        if self._consumer.auto_ack:
            settler.submit(delivery, Ack())  # sends nothing; the delivery is just no longer held
            return True, None
        outcome: Outcome = Succeeded() if ack else Failed("the handler called msg:nack()", "")
        try:
            await settler.carry_out(delivery, decide(delivery, outcome, self._queue, self._clock()))
        except BrokerError as error:
            return None, HandlerError(str(error), INTERNAL, retryable=False)
        return True, None

    def _settle(self, settler: Settler, delivery: Delivery, outcome: Outcome) -> None:
        plan = decide(delivery, outcome, self._queue, self._clock())
        if isinstance(outcome, Poison):
            logger.error(
                "consumer %s: message '%s' is a dead letter (%s): %s",
                self._consumer.id,
                delivery.properties.message_id or "",
                outcome.reason,
                outcome.text,
                extra=self._log_fields(delivery),
            )
        settler.submit(delivery, plan)

    def _count(self, delivery: Delivery, finished: Finished) -> None:
        self._counters.handled += 1
        if finished.error is None and finished.settled != "nack":
            return
        self._counters.failed += 1
        logger.warning(
            "consumer %s: message '%s' failed (attempt %d of %d%s): %s",
            self._consumer.id,
            delivery.properties.message_id or "",
            attempts_of(delivery.properties) + 1,
            self._queue.retry.max_attempts,
            f", settled by {finished.settled}" if finished.settled else "",
            finished.error.text if finished.error else "msg:nack()",
            extra=self._log_fields(delivery),
        )

    def _log_fields(self, delivery: Delivery) -> dict[str, Any]:
        return {
            "consumer": str(self._consumer.id),
            "queue": str(self._queue.id),
            "message_id": delivery.properties.message_id or "",
            "attempt": attempts_of(delivery.properties),
        }


class _UndecodableError(Exception):
    def __init__(self, poison: Poison) -> None:
        super().__init__(poison.text)
        self.poison = poison


def _outcome(finished: Finished) -> Outcome:
    if finished.error is None:
        return Succeeded()
    return Failed(finished.error.text, finished.error.kind_value)
