"""OpenTelemetry spans, where an endpoint is configured; `serve` opens them, the worker's slots record them.

Configured by OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME and so on), sent
as OTLP over HTTP by a thread of the SDK. The library is imported only then: it costs memory and start-up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lunaq_runtime import trace_context

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

    from lunaq_runtime.message import Delivery

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Variables that name where spans go; without one of them nothing is recorded."""


def open_spans(environ: Mapping[str, str]) -> Spans | None:
    """Prepare to record, if the environment names an endpoint; None otherwise."""
    if not any(environ.get(name) for name in ENDPOINTS) or environ.get("OTEL_SDK_DISABLED") == "true":
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - heavy, rarely wanted
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415 - likewise
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - likewise
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - likewise

    name = environ.get("OTEL_SERVICE_NAME", "lunaq-runtime")
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Spans(provider)


class Spans:
    """Makes the spans of deliveries and of the publishes within them; names and attributes follow
    OpenTelemetry's semantic conventions for messaging.
    """

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace  # noqa: PLC0415 - heavy, rarely wanted
        from opentelemetry.trace.propagation import tracecontext  # noqa: PLC0415 - likewise

        self._trace = trace
        self._provider = provider
        self._propagator = tracecontext.TraceContextTextMapPropagator()
        self._tracer = provider.get_tracer("lunaq-runtime")

    def process(self, delivery: Delivery, queue_id: str, consumer_id: str) -> Span:
        """Start the span of a handler's run, within the trace that the message carries."""
        properties = delivery.properties
        attributes: dict[str, Any] = {
            "messaging.system": "rabbitmq",
            "messaging.operation.type": "process",
            "messaging.destination.name": queue_id,
            "messaging.message.id": properties.message_id or "",
            "messaging.message.body.size": len(delivery.body),
            "lunaq.consumer": consumer_id,
        }
        parent = self._propagator.extract(trace_context.carried(properties.headers))
        kind = self._trace.SpanKind.CONSUMER
        return self._tracer.start_span(f"process {queue_id}", parent, kind, attributes)

    def publish(self, within: Span, queue_id: str) -> tuple[Span, dict[str, str]]:
        """Start the span of a publish, and give the headers that carry it."""
        context = self._trace.set_span_in_context(within)
        attributes: dict[str, Any] = {
            "messaging.system": "rabbitmq",
            "messaging.operation.type": "send",
            "messaging.destination.name": queue_id,
        }
        kind = self._trace.SpanKind.PRODUCER
        span = self._tracer.start_span(f"send {queue_id}", context, kind, attributes)
        headers: dict[str, str] = {}
        self._propagator.inject(headers, self._trace.set_span_in_context(span))
        return span, headers

    def end(self, span: Span, error: str = "", kind: str = "") -> None:
        """End a span; `error` says what went wrong, `kind` is the error's."""
        if error:
            span.set_status(self._trace.StatusCode.ERROR, error[:1000])
            span.set_attribute("error.type", kind or "error")
        span.end()

    def close(self) -> None:
        """Send what is left; blocks for a few seconds at most where nobody takes it."""
        self._provider.shutdown()
