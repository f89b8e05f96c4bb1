"""The trace of a message goes on in what its handler publishes; spans go where an endpoint is named."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from harness.waiting import eventually
from harness.worker_stage import Stage
from lunaq_runtime.brokers.memory import MemoryBroker, MemoryServer
from lunaq_runtime.spans import Spans, open_spans
from lunaq_runtime.trace_context import carried

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
RELAYS = "function handle(body) log(body) end"


@pytest.mark.parametrize(
    ("headers", "kept"),
    [
        ({"traceparent": PARENT}, {"traceparent": PARENT}),
        ({"traceparent": PARENT.encode(), "tracestate": "a=b"}, {"traceparent": PARENT, "tracestate": "a=b"}),
        ({"traceparent": PARENT.replace("00-", "ff-", 1)}, {}),
        ({"traceparent": f"00-{'0' * 32}-b7ad6b7169203331-01"}, {}),
        ({"traceparent": f"00-{TRACE}-{'0' * 16}-01"}, {}),
        ({"traceparent": PARENT.upper()}, {}),
        ({"traceparent": 7}, {}),
        ({"tracestate": "a=b"}, {}),
        ({}, {}),
    ],
)
def test_only_a_valid_context_is_carried(headers: dict[str, object], kept: dict[str, str]) -> None:
    assert carried(headers) == kept


async def test_a_publish_carries_the_trace_of_the_message_it_is_made_for(stage: Stage) -> None:
    await stage.start(RELAYS)
    await stage.send(headers={"traceparent": PARENT, "tracestate": "vendor=1"})
    (published,) = await stage.collected("app:log", 1)
    assert published.properties.headers == {"traceparent": PARENT, "tracestate": "vendor=1"}


async def test_a_publish_for_a_message_without_a_trace_carries_none(stage: Stage) -> None:
    await stage.start(RELAYS)
    await stage.send()
    (published,) = await stage.collected("app:log", 1)
    assert published.properties.headers == {}


async def test_a_trace_that_the_handler_sets_itself_wins(stage: Stage) -> None:
    own = PARENT.replace("b7ad", "aaaa")
    await stage.start(f'function handle() queue.publish("app:log", 1, {{traceparent = "{own}"}}) end')
    await stage.send(headers={"traceparent": PARENT})
    (published,) = await stage.collected("app:log", 1)
    assert published.properties.headers == {"traceparent": own}


class Recorded:
    """Spans kept in memory."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.spans = Spans(provider)

    async def named(self, name: str, count: int = 1) -> list[ReadableSpan]:
        async def enough() -> list[ReadableSpan]:
            found = [span for span in self._exporter.get_finished_spans() if span.name == name]
            return found if len(found) >= count else []

        return await eventually(enough, f"{count} spans named {name}")


async def test_a_run_and_its_publish_are_spans_of_the_messages_trace(stage: Stage) -> None:
    recorded = Recorded()
    stage.spans = recorded.spans
    await stage.start(RELAYS)
    await stage.send(message_id="m-1", headers={"traceparent": PARENT})
    (published,) = await stage.collected("app:log", 1)
    (run,) = await recorded.named("process app:work")
    (send,) = await recorded.named("send app:log")
    assert run.context.trace_id == send.context.trace_id == int(TRACE, 16)
    assert run.parent
    assert run.parent.span_id == int("b7ad6b7169203331", 16)
    assert send.parent
    assert send.parent.span_id == run.context.span_id
    assert published.properties.headers["traceparent"] == f"00-{TRACE}-{send.context.span_id:016x}-01"
    assert run.attributes
    assert run.attributes["messaging.message.id"] == "m-1"


async def test_publishes_that_overlap_are_a_span_each(stage: Stage) -> None:
    recorded = Recorded()
    stage.spans = recorded.spans
    await stage.start(
        "function handle() local done = channel.new() for n = 1, 2 do"
        " coroutine.spawn(function() queue.publish('app:log', {n = n}) done:send(n) end) end"
        " done:receive() done:receive() end"
    )
    await stage.send(headers={"traceparent": PARENT})
    published = await stage.collected("app:log", 2)
    sent = await recorded.named("send app:log", 2)
    carried_on = {f"00-{TRACE}-{span.context.span_id:016x}-01" for span in sent}
    assert {delivery.properties.headers["traceparent"] for delivery in published} == carried_on


async def test_a_refused_publish_is_a_span_with_its_error(stage: Stage) -> None:
    recorded = Recorded()
    stage.spans = recorded.spans
    await stage.start("function handle() queue.publish('app:nowhere', 1) end")
    await stage.send()
    (sent,) = await recorded.named("send app:nowhere")
    assert not sent.status.is_ok
    assert (sent.attributes or {})["error.type"] == "Internal"


async def test_a_failed_run_is_a_span_with_its_error_and_so_is_a_body_that_does_not_decode(
    stage: Stage,
) -> None:
    recorded = Recorded()
    stage.spans = recorded.spans
    await stage.start("function handle() return nil, errors.new{message = 'no', kind = 'Conflict'} end")
    await stage.send()
    await stage.send(body=b"{")
    await stage.dead(2)
    spans = await recorded.named("process app:work", 4)
    kinds = sorted(str((span.attributes or {})["error.type"]) for span in spans)
    assert kinds == ["Conflict", "Conflict", "Conflict", "decode_error"]
    assert {span.status.is_ok for span in spans} == {False}


def test_without_an_endpoint_nothing_is_recorded() -> None:
    assert open_spans({}) is None
    assert open_spans({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}) is None


async def test_spans_arrive_at_the_configured_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    arrived: asyncio.Queue[bytes] = asyncio.Queue()

    async def take(request: web.Request) -> web.Response:
        arrived.put_nowait(await request.read())
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/traces", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{host}:{port}")
    spans = open_spans({"OTEL_EXPORTER_OTLP_ENDPOINT": "set"})
    assert spans
    server = MemoryServer()
    stage = Stage(lambda: MemoryBroker(server))
    stage.spans = spans
    await stage.open()
    await stage.start(RELAYS)
    await stage.send()
    await stage.collected("app:log", 1)
    await stage.close()
    await asyncio.to_thread(spans.close)
    told = ExportTraceServiceRequest.FromString(await asyncio.wait_for(arrived.get(), 30))
    names = {
        span.name for group in told.resource_spans for scope in group.scope_spans for span in scope.spans
    }
    assert names == {"process app:work", "send app:log"}
    await runner.cleanup()
