"""A slot that records spans, one a run and one a publish in it; `worker` makes them where wanted."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lunaq_runtime.lua.errors import HandlerError
from lunaq_runtime.lua.requests import Finished, Publish
from lunaq_runtime.retry import Poison
from lunaq_runtime.worker.slot import Slot

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.trace import Span

    from lunaq_runtime.entries.model import Consumer
    from lunaq_runtime.lua.requests import Request, Void
    from lunaq_runtime.message import Delivery
    from lunaq_runtime.spans import Spans
    from lunaq_runtime.worker.session import Session
    from lunaq_runtime.worker.slot import Answer, State


class TracedSlot(Slot):
    """A slot whose runs are spans."""

    def __init__(self, consumer: Consumer, codec: str, make_state: Callable[[], State], spans: Spans) -> None:
        super().__init__(consumer, codec, make_state)
        self._spans = spans
        self._queue_id = str(consumer.queue)
        self._consumer_id = str(consumer.id)
        self._run: Span | None = None

    def start(self, session: Session, delivery: Delivery, now: float) -> Request | Finished | Void | Poison:
        self.runs_ahead = False  # a span of a publish lies within that of its run
        self._run = self._spans.process(delivery, self._queue_id, self._consumer_id)
        return self._seen(super().start(session, delivery, now))

    def pack(self, _delivery: Delivery, _into: list[Any]) -> bool:
        """Start each by itself, for it has a span of its own."""
        return False

    def resume(self, reply: tuple[Any, ...] | HandlerError) -> Request | Finished | Void:
        outcome = super().resume(reply)
        self._seen(outcome)
        return outcome

    def traced(self, request: Publish, answer: Answer) -> tuple[Publish, Answer]:
        if self._run is None:
            return request, answer
        span, headers = self._spans.publish(self._run, request.queue_id)

        def ended(reply: tuple[Any, ...]) -> None:
            self._end(span, next(iter(reply[1:]), None))
            answer(reply)

        return replace(request, headers=headers | request.headers), ended

    def _seen(self, outcome: Request | Finished | Void | Poison) -> Request | Finished | Void | Poison:
        if self._run and isinstance(outcome, (Finished, Poison)):
            if isinstance(outcome, Poison):
                self._spans.end(self._run, outcome.text, outcome.reason)
            else:
                self._end(self._run, outcome.error)
            self._run = None
        return outcome

    def _end(self, span: Span, error: Any) -> None:
        if isinstance(error, HandlerError):
            self._spans.end(span, error.text, error.kind_value)
        else:
            self._spans.end(span)
