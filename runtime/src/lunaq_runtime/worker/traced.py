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
    from lunaq_runtime.lua.requests import Request
    from lunaq_runtime.message import Delivery
    from lunaq_runtime.spans import Spans
    from lunaq_runtime.worker.session import Session
    from lunaq_runtime.worker.slot import State


class TracedSlot(Slot):
    """A slot whose runs are spans."""

    def __init__(self, consumer: Consumer, codec: str, make_state: Callable[[], State], spans: Spans) -> None:
        super().__init__(consumer, codec, make_state)
        self._spans = spans
        self._queue_id = str(consumer.queue)
        self._consumer_id = str(consumer.id)
        self._run: Span | None = None
        self._publish: Span | None = None

    def start(self, session: Session, delivery: Delivery, now: float) -> Request | Finished | Poison:
        self._run = self._spans.process(delivery, self._queue_id, self._consumer_id)
        return self._seen(super().start(session, delivery, now))

    def resume(self, reply: tuple[Any, ...] | HandlerError) -> Request | Finished:
        if self._publish:
            error = reply if isinstance(reply, HandlerError) else next(iter(reply[1:]), None)
            self._end(self._publish, error)
            self._publish = None
        outcome = super().resume(reply)
        self._seen(outcome)
        return outcome

    def traced(self, request: Publish) -> Publish:
        if self._run is None:
            return request
        self._publish, headers = self._spans.publish(self._run, request.queue_id)
        return replace(request, headers=headers | request.headers)

    def _seen(self, outcome: Request | Finished | Poison) -> Request | Finished | Poison:
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
