"""A whole runtime process: policies, brokers, health, signals and the runner together; called by `main`."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import uvloop

from lunaq_runtime import tls
from lunaq_runtime.brokers.amqp import AmqpBroker
from lunaq_runtime.brokers.memory import MemoryBroker
from lunaq_runtime.credentials import MountedCredentials
from lunaq_runtime.entries.parse import EntriesError
from lunaq_runtime.health import HealthServer
from lunaq_runtime.metrics import Metrics
from lunaq_runtime.policy_source import PolicyFile, PolicySource
from lunaq_runtime.runner import Runner
from lunaq_runtime.spans import open_spans

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from lunaq_runtime.brokers.base import Broker
    from lunaq_runtime.entries.model import Document, Driver
    from lunaq_runtime.ids import Id

logger = logging.getLogger(__name__)

EXIT_FAILED = 1

_HOW_TO_GRANT = "add a security.policy entry for it, or give --policy FILE or --allow-all"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line says beside the document; `main` explains each."""

    policy_file: Path | None = None
    allow_all: bool = False
    broker_url: str = ""
    credentials_dir: Path | None = None
    health_host: str = "127.0.0.1"
    health_port: int = 0


def run(document: Document, settings: Settings) -> int:
    """Run a document until a signal (0) or a failure (1); EntriesError where its drivers cannot be."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        return loop.run(serve(document, settings))


async def serve(document: Document, settings: Settings) -> int:
    """Do the same on the running loop."""
    stop = _stop_signal()
    policies = _policies(document, settings)
    credentials = MountedCredentials(settings.credentials_dir) if settings.credentials_dir else None
    spans = open_spans(os.environ)
    runner = Runner(
        document,
        policies,
        lambda: make_brokers(document, settings.broker_url, credentials),
        credentials,
        spans,
    )
    health = _health(runner)
    try:
        port = await health.start(settings.health_host, settings.health_port)
    except OSError as error:
        where = f"{settings.health_host}, port {settings.health_port}"
        logger.error("cannot serve health on %s: %s", where, error.strerror)  # noqa: TRY400 - says it all
        return EXIT_FAILED
    logger.info("serving /healthz, /readyz and /metrics on port %d", port)
    work: list[Coroutine[Any, Any, Any]] = [runner.run()]
    if isinstance(policies, PolicyFile):
        work.append(policies.watch())
    try:
        await runner.start()
        # What is there by now stays: the collector need not walk it again for every few hundred messages.
        gc.freeze()
        return await _until_stopped(stop, work)
    finally:
        await runner.drain()
        await health.stop()
        if spans:
            await asyncio.to_thread(spans.close)


def make_brokers(
    document: Document, url: str = "", credentials: MountedCredentials | None = None
) -> dict[Id, Broker]:
    """Make a broker for each driver that a queue is on, not connected yet; `url` replaces them all."""
    used = {queue.driver for queue in document.queues.values()}
    drivers = [driver for driver in document.drivers.values() if driver.id in used]
    return {driver.id: _broker(driver, url, credentials) for driver in drivers}


async def _until_stopped(stop: asyncio.Event, work: list[Coroutine[Any, Any, Any]]) -> int:
    """Wait for the signal, or for work that should never end."""
    tasks = [asyncio.ensure_future(one) for one in work]
    waiting = asyncio.ensure_future(stop.wait())
    await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
    failed = [task for task in tasks if task.done()]
    for task in (waiting, *tasks):
        task.cancel()
    await asyncio.gather(waiting, *tasks, return_exceptions=True)
    for task in failed:
        error = task.exception()
        logger.error("the process must end: %s", error or task.result(), exc_info=error)
    logger.info("draining")
    return EXIT_FAILED if failed else 0


def _stop_signal() -> asyncio.Event:
    """Return an event that the first SIGTERM or SIGINT sets; a second one ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def set_once() -> None:
        stop.set()
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in numbers:
        loop.add_signal_handler(number, set_once)
    return stop


def _policies(document: Document, settings: Settings) -> PolicySource:
    if settings.allow_all:
        logger.warning("--allow-all: every consumer may publish and consume everything")
        return PolicySource.allow_all()
    if settings.policy_file:
        return PolicyFile(settings.policy_file)
    for consumer in document.consumers:
        if consumer not in document.policies:
            logger.warning("consumer %s may do nothing: %s", consumer, _HOW_TO_GRANT)
    return PolicySource(document.policies)


def _health(runner: Runner) -> HealthServer:
    metrics = Metrics(
        runner.counters,
        reconnects=lambda: runner.reconnects,
        ready=lambda: runner.ready,
        handlers=runner.services.metrics,
    )
    return HealthServer(healthy=lambda: runner.healthy, ready=lambda: runner.ready, metrics=metrics.render)


def _broker(driver: Driver, url: str, credentials: MountedCredentials | None) -> Broker:
    if driver.kind == "memory" and not url:
        return MemoryBroker()
    try:
        return AmqpBroker(
            url or driver.url,
            credentials=credentials,
            connection_name=driver.connection_name or f"lunaq-runtime {driver.id}",
            heartbeat=driver.heartbeat,
            connection_timeout=driver.connection_timeout,
            reconnect_delay=driver.reconnect_delay,
            reconnect_max_delay=driver.reconnect_max_delay,
            tls=tls.at_connect(driver.tls) if driver.tls else None,
        )
    except ValueError as error:
        where = "--broker-url" if url else f"driver {driver.id}"
        raise EntriesError([f"{where} {error}"]) from None
