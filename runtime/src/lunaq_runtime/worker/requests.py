"""Carries out what handlers ask for, on the event loop: sleeping, publishing, looking at a queue.

Every permission has been checked by then (in Lua's `queue` module). Settling is the worker's own, through
`settle`. A refusal is a reply `(None, error)`: kind Internal, retryable, with `reason` in its details.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from lunaq_runtime import codecs, headers
from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.ids import Id, exchange_name
from lunaq_runtime.limits import MAX_BODY
from lunaq_runtime.lua.errors import INTERNAL, HandlerError
from lunaq_runtime.lua.requests import PUBLISHED, HttpCalls, HttpClose, HttpRead, Info, Publish, Sleep
from lunaq_runtime.message import Outgoing, Stamped
from lunaq_runtime.worker.message_ids import new_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lunaq_runtime.brokers.base import Broker
    from lunaq_runtime.entries.model import Queue
    from lunaq_runtime.lua.requests import Single
    from lunaq_runtime.worker.counters import Counters
    from lunaq_runtime.worker.http_client import HttpClient

logger = logging.getLogger(__name__)

MAX_TARGETS = 1000
"""Queues whose exchange is remembered."""

OVERHEAD = 512
"""Bytes that a publish on its way is taken to use beside its body."""

Reply = tuple[Any, ...]
Target = tuple[str, "Callable[[Any], bytes]", str]
"""An exchange, what encodes a value for its queue, and the content type of that."""


class Requests:
    """Carries out one consumer's requests on its broker.

    `queues` are the document's; a queue that is not listed has its ID for a name, as the operator makes it.
    `private_ranges` are those that `http_client` may reach (`entries.model.Handler`). `on_their_way` is about
    how many bytes the publishes take that are not answered yet.
    """

    def __init__(
        self,
        broker: Broker,
        driver: Id,
        queues: Mapping[Id, Queue],
        counters: Counters,
        private_ranges: tuple[str, ...] = (),
    ) -> None:
        self._broker = broker
        self._driver = driver
        self._queues = queues
        self._counters = counters
        self._targets: dict[str, Target] = {}
        self._private_ranges = private_ranges
        self._http: HttpClient | None = None
        self.on_their_way = 0

    async def close(self) -> None:
        """End what goes beyond one request: HTTP connections."""
        if self._http:
            await self._http.close()

    async def execute(self, request: Single) -> Reply:
        """Carry out a request and return what the Lua call returns."""
        match request:
            case Sleep(seconds=seconds):
                await asyncio.sleep(seconds)
                return ()
            case Publish():
                return await answered(partial(self.publish_soon, request))
            case Info(queue_id=queue_id):
                return await self._info(queue_id)
            case HttpCalls():
                return await self._http_client().call(request)
            case HttpRead():
                return await self._http_client().read(request)
            case HttpClose(stream=stream):
                return self._http_client().close_stream(stream)

    def _http_client(self) -> HttpClient:
        if self._http is None:
            # Few handlers need it, and its library takes time and memory to load.
            from lunaq_runtime.worker.http_client import HttpClient  # noqa: PLC0415

            self._http = HttpClient(self._private_ranges)
        return self._http

    def publish_soon(self, request: Publish, answer: Callable[[Reply], None]) -> None:
        """Carry out a publish without a task; `answer` is called once, maybe before this returns."""
        try:
            outgoing = self._outgoing(request)
        except HandlerError as error:
            answer(self._refuse(error))
        except codecs.CodecError as error:
            answer(self._refuse(_refused("encode_failed", str(error))))
        else:
            size = len(outgoing.body) + OVERHEAD
            self.on_their_way += size
            self._broker.publish_soon(outgoing, partial(self._answered, answer, size))

    def _answered(self, answer: Callable[[Reply], None], size: int, error: BrokerError | None) -> None:
        """Turn a broker's answer into the reply to one request."""
        self.on_their_way -= size
        if error is None:
            self._counters.published += 1
            answer(PUBLISHED)
        else:
            answer(self._refused_by_broker(error))

    def _refused_by_broker(self, error: BrokerError) -> Reply:
        """Count a publish that the broker has refused, and tell what the Lua call returns."""
        text = "queue not found" if error.reason == "queue_not_found" else str(error)
        return self._refuse(_refused(error.reason, text))

    def _refuse(self, refused: HandlerError) -> Reply:
        self._counters.publish(refused=str((refused.detail_values or {}).get("reason", "other")))
        return None, refused

    def _outgoing(self, request: Publish) -> Outgoing:
        queue_id = request.queue_id
        exchange, encoder, content_type = self._targets.get(queue_id) or self._target(queue_id)
        body = encoder(request.value)
        if len(body) > MAX_BODY:
            raise _refused("too_large", f"the message has {len(body)} bytes, more than {MAX_BODY}")
        if not request.headers:
            return Stamped(exchange, body, content_type, new_id(), int(time.time()))
        properties, warnings = headers.to_properties(
            request.headers, content_type, int(time.time()), new_id().decode(), map_priority=True
        )
        for warning in warnings:
            logger.warning("publish to %s: %s", queue_id, warning)
        return Outgoing(exchange, "", body, properties)

    def _target(self, queue_id: str) -> Target:
        """Find how to publish to a queue, and remember it: that is the same for ever."""
        queue = self._resolve(queue_id)
        if isinstance(queue, str):
            target = exchange_name(queue), *codecs.encoder_of(codecs.JSON)
        elif queue.observe:
            raise _refused("observed", f"queue {queue.id} is only observed: its owner publishes to it")
        else:
            target = exchange_name(queue.queue_name), *codecs.encoder_of(queue.codec)
        if len(self._targets) < MAX_TARGETS:
            self._targets[queue_id] = target
        return target

    async def _info(self, queue_id: str) -> Reply:
        try:
            queue = self._resolve(queue_id)
            info = await self._broker.queue_info(queue if isinstance(queue, str) else queue.queue_name)
        except HandlerError as error:
            return None, HandlerError(error.text, INTERNAL, retryable=False)
        except BrokerError as error:
            text = "queue not found" if error.reason == "queue_not_found" else str(error)
            return None, HandlerError(text, INTERNAL, retryable=False)
        return {
            "message_count": info.ready,
            "ready": info.ready,
            "consumer_count": info.consumers,
        }, None

    def _resolve(self, queue_id: str) -> Queue | str:
        """Find a listed queue, or the broker-side name of one that is not."""
        parsed = Id.parse(queue_id)
        queue = self._queues.get(parsed)
        if queue is not None:
            if queue.driver != self._driver:
                raise _refused("queue_not_found", f"queue not found: {queue_id} is on another broker")
            return queue
        if not (parsed.namespace and parsed.name):
            raise _refused("queue_not_found", "queue not found")
        return queue_id


async def answered(begin: Callable[[Callable[[Reply], None]], None]) -> Reply:
    """Begin something that answers by a callback, and wait for the answer."""
    waiting: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    def answer(reply: Reply) -> None:
        if not waiting.done():  # whoever waited may have been cancelled
            waiting.set_result(reply)

    begin(answer)
    return await waiting


def _refused(reason: str, text: str) -> HandlerError:
    return HandlerError(text, INTERNAL, retryable=True, details={"reason": reason})
