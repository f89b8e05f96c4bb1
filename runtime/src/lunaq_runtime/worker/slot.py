"""A concurrency slot: a Lua state, and a place for the one delivery that it is at work on.

`lane` calls `start`, `resume` and `release` in a Lua thread, one at a time; `interrupt` and the reading of
attributes are the event loop's. A state that was lost (out of memory, interrupted where it cannot be
trusted) is made again for the next run.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

from lunaq_runtime import codecs
from lunaq_runtime.limits import MAX_BODY
from lunaq_runtime.lua.errors import INTERNAL, HandlerError
from lunaq_runtime.lua.requests import Finished
from lunaq_runtime.retry import DECODE_ERROR, TOO_LARGE, Poison
from lunaq_runtime.worker.context import DeliveryContext, carry_on_trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from lunaq_runtime.entries.model import Consumer
    from lunaq_runtime.lua.requests import Publish, Request, Void
    from lunaq_runtime.message import Delivery
    from lunaq_runtime.worker.batch import Batch
    from lunaq_runtime.worker.pending import Pending
    from lunaq_runtime.worker.session import Session

    Pack = Callable[[Any, list[Any]], bool]
    Answer = Callable[[tuple[Any, ...]], None]

logger = logging.getLogger(__name__)


class Invocation(Protocol):
    """What a slot needs of `lua.state.Invocation`."""

    def step(self, reply: tuple[Any, ...] = ()) -> Request | Finished | Void:
        """Run Lua until it asks for something or is over."""

    def interrupt(self, error: HandlerError) -> None:
        """End the running step soon, from another thread."""

    def abort(self, error: HandlerError) -> Finished | Void:
        """End the invocation between steps."""

    def begun(self) -> None:
        """Be the one that Lua is at work on."""

    def carry_on(self, outcome: Any) -> Request | Finished | Void:
        """Take over what Lua came to in a batch."""


class State(Protocol):
    """What a slot needs of `lua.state.LuaState`."""

    memory: Any

    def run_ahead(self, may: bool) -> None:  # noqa: FBT001 - it is what it says
        """Let runs from the next one on go ahead of the confirms of their publishes, or not."""

    def start(self, context: Any, body: Any, size: int | None) -> Invocation:
        """Begin an invocation on a body of `size` bytes; `context` looks like a `lua.host.MessageContext`."""

    def pack(self, body: Any, into: list[Any]) -> bool:
        """Append a body to those for `start_batch`; False where it has to be started by itself."""

    def start_batch(
        self, count: int, bodies: list[Any], size: int, turn: Callable[[int], bool]
    ) -> tuple[int, Any]:
        """Run the handler on one body after the other, until one does more than succeed."""

    def finished(self) -> None:
        """Be free for the next invocation."""


class Slot:
    """Runs deliveries one after the other; `make_state` is called in a thread.

    `delivery` is the one in work, of `session`, `started` on the monotonic clock; `pending` is the request
    that the event loop is carrying out for it. An `interruption` holds for all that may still be started.
    `decoders` are its queue's, by content type.
    `most` is how many deliveries the next batch should have; of a `batch`, any one may be in work.
    `runs_ahead`: whether runs may go ahead of the confirms of their publishes, see `ahead`.
    """

    __slots__ = (
        "_codec",
        "_context",
        "_invocation",
        "_known",
        "_label",
        "_make_state",
        "_memory_limit",
        "_state",
        "batch",
        "decoders",
        "delivery",
        "interruption",
        "most",
        "pending",
        "runs_ahead",
        "session",
        "started",
    )

    def __init__(self, consumer: Consumer, codec: str, make_state: Callable[[], State]) -> None:
        self._label = f"consumer {consumer.id}"
        self._codec = codec
        self.decoders = codecs.decoders_for_lua(codec)
        self._memory_limit = consumer.handler.memory_limit
        self._make_state = make_state
        self._context = DeliveryContext(consumer, self)
        self._state: State | None = None
        self._invocation: Invocation | None = None
        self.session: Session | None = None
        self.delivery: Delivery | None = None
        self.started = 0.0
        self._known: tuple[Delivery, Any] | None = None
        self.batch: Batch | None = None
        self.most = 1
        self.runs_ahead = False
        self.pending: Pending | None = None
        self.interruption: HandlerError | None = None

    @property
    def lua_memory(self) -> int:
        """Bytes that the Lua state had in use when last looked at; another thread may be at work in it."""
        state = self._state
        return state.memory.seen if state else 0

    def load(self) -> None:
        """Load the handler; HandlerLoadError says what is wrong with it."""
        self._state = self._make_state()

    def start(self, session: Session, delivery: Delivery, now: float) -> Request | Finished | Void | Poison:
        """Run the handler on a delivery until it asks for something or is over; raises nothing of Lua's."""
        self.started = now  # before `delivery`: the watchdog reads them the other way round
        self.session = session
        self.delivery = delivery
        body = delivery.body
        size = len(body)
        try:
            if size >= codecs.HEAVY:
                self._weigh(delivery)
            value = self._decoded(delivery)
        except codecs.TooHeavyError as error:
            return Poison(TOO_LARGE, str(error))
        except codecs.CodecError as error:
            return Poison(DECODE_ERROR, str(error))
        try:
            state = self._state
            if state is None:
                self._state = state = self._make_state()
            state.run_ahead(self.runs_ahead)
            self._invocation = invocation = state.start(self._context, value, size)
            if self.interruption:
                return invocation.abort(self.interruption)
            return invocation.step()
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends this run only
            return self._failed(error)

    def resume(self, reply: tuple[Any, ...] | HandlerError) -> Request | Finished | Void:
        """Go on with the reply to a request, or end with an error instead of one."""
        invocation = self._invocation
        if invocation is None:  # pragma: no cover - only what was started is resumed
            raise RuntimeError("a slot was resumed that had not been started")
        try:
            if self.interruption:
                return invocation.abort(self.interruption)
            if isinstance(reply, HandlerError):
                return invocation.abort(reply)
            return invocation.step(reply)
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends this run only
            return self._failed(error)

    def packer(self) -> Pack | None:
        """Give what appends a decoded body to those for `run_batch`; None where nothing can be appended.

        It returns False for what has to be started by itself.
        """
        state = self._state
        return None if state is None or self.interruption else state.pack

    def know(self, delivery: Delivery, value: Any) -> None:
        """Keep what a body was decoded to, for a start of its delivery."""
        self._known = delivery, value

    def run_batch(self, batch: Batch, bodies: list[Any], size: int, now: float) -> tuple[int, Any]:
        """Run the handler on one body after the other: see `lua.state.LuaState.start_batch`."""
        state = self._state
        if state is None:  # pragma: no cover - without a state nothing is packed
            raise RuntimeError("a batch was started in a slot without a state")
        self.started = now
        self.session = batch.session
        self.delivery = batch.deliveries[0]
        self.batch = batch
        state.run_ahead(self.runs_ahead)
        try:
            place, outcome = state.start_batch(len(batch.deliveries), bodies, size, batch.turn)
        finally:
            self.batch = None
        if place == 0:
            state.finished()
        return place, outcome

    def turn_to(self, delivery: Delivery, now: float) -> None:
        """Be at work on a delivery of a batch, which Lua has started already."""
        state = self._state
        if state is None:  # pragma: no cover - it is at work
            raise RuntimeError("a batch is at work in a slot without a state")
        state.finished()
        self.started = now
        self.delivery = delivery
        self._invocation = invocation = state.start(self._context, None, None)
        invocation.begun()
        if self.interruption:
            invocation.interrupt(self.interruption)

    def carry_on(self, outcome: Any) -> Request | Finished | Void:
        """Go on with the delivery at which a batch ended; `outcome` is what Lua came to there."""
        invocation = self._invocation
        if invocation is None:  # pragma: no cover - only what was turned to ends a batch
            raise RuntimeError("a slot was to carry on what it had not started")
        return invocation.carry_on(outcome)

    def traced(self, request: Publish, answer: Answer) -> tuple[Publish, Answer]:
        """Let a publish carry on the trace of the delivery in work.

        Returns the publish to make, and what to call with its reply.
        """
        delivery = self.delivery
        return (request if delivery is None else carry_on_trace(request, delivery)), answer

    def release(self, *, state_lost: bool = False) -> None:
        """Be free for another delivery."""
        self.delivery = self.session = self._invocation = None
        if state_lost:
            self._state = None

    def interrupt(self, error: HandlerError) -> None:
        """End the run as soon as possible, wherever it is, and whatever is started from now on."""
        self.interruption = error
        if invocation := self._invocation:
            invocation.interrupt(error)

    def _weigh(self, delivery: Delivery) -> None:
        """Raise TooHeavyError for a body that is not to be decoded."""
        body = delivery.body
        if len(body) > MAX_BODY:
            raise codecs.TooHeavyError(f"the body has {len(body)} bytes, more than {MAX_BODY}")
        codecs.check_weight(body, delivery.content_type, self._codec, self._memory_limit)

    def _decoded(self, delivery: Delivery) -> Any:
        """Decode a body, unless it is known; CodecError."""
        if self._known is not None:
            known, self._known = self._known, None
            if known[0] is delivery:
                return known[1]
        return self.decoders[delivery.content_type](delivery.body)

    def _failed(self, error: Exception) -> Finished:
        # Whatever broke, it is not the message's loss: the run counts as failed.
        logger.error("%s: the handler could not be run", self._label, exc_info=error)
        failure = HandlerError(f"the handler could not be run: {error}", INTERNAL)
        return Finished(error=failure, state_lost=True)
