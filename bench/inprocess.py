"""What one message costs inside this process: CPU of the Lua call, of a publish, of the whole path.

No broker but the memory broker, so the figures are the runtime's own. Prints one line a job: messages per
second and CPU (all threads) per message. `--only WORD` picks some, `--count` sets the messages of a job.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import uvloop

from lunaq_runtime.app import App
from lunaq_runtime.brokers.memory import MemoryBroker
from lunaq_runtime.entries.model import Consumer, Document, Driver, Handler, Queue
from lunaq_runtime.ids import Id
from lunaq_runtime.lua.host import Identity
from lunaq_runtime.lua.requests import Finished
from lunaq_runtime.lua.state import LuaState, MessageContext
from lunaq_runtime.message import Outgoing, Properties
from lunaq_runtime.policy_source import PolicySource

if TYPE_CHECKING:
    from collections.abc import Callable

BODY = orjson.dumps(
    {
        "id": "8c4f0a12-7d1e-4a43-9c1d-1234567890ab",
        "to": "someone@example.com",
        "n": 12345,
        "ok": True,
        "pad": "x" * 80,
    }
)
READS = 'function handle(body) local id, n = body.id, body.n if not id then error("no id") end end'
PUBLISHES = """local queue = require("queue")
function handle(body) assert(queue.publish("app:out", {id = body.id, n = body.n + 1, ok = true})) end"""


class NoHost:
    """Allows everything, logs nothing."""

    def can(self, _action: str, _resource: str) -> bool:
        return True

    def may_publish(self, _queue_id: str) -> bool:
        return True

    def log(self, *_: Any) -> None:
        return


def cpu() -> float:
    """Tell the CPU seconds of all threads so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def report(name: str, count: int, wall: float, used: float) -> None:
    """Print one line."""
    print(f"{name:44} {count / wall:>10,.0f} /s {used / count * 1e6:>8.2f} µs CPU")


def lua_calls(name: str, source: str, count: int) -> None:
    """Run a handler on one decoded body after the other, in this thread."""
    state = LuaState(Handler("bench.lua", source), NoHost(), identity=Identity("app:bench", "app:work"))
    value = orjson.loads(BODY)
    context = MessageContext("id")
    began, used = time.perf_counter(), cpu()
    for _ in range(count):
        invocation = state.start(context, value)
        outcome = invocation.step()
        while not isinstance(outcome, Finished):
            outcome = invocation.step((True, None))
    report(name, count, time.perf_counter() - began, cpu() - used)


class Bench:
    """An app on a memory broker with the queues `app:work` and `app:out`."""

    def __init__(self, source: str, concurrency: int, prefetch: int) -> None:
        driver, work, out, worker = (Id("app", name) for name in ("broker", "work", "out", "worker"))
        self.broker = MemoryBroker()
        self.worker = worker
        self.app = App(
            Document(
                namespace="app",
                drivers={driver: Driver(driver, "memory")},
                queues={
                    work: Queue(work, driver, "app:work", type="Classic"),
                    out: Queue(out, driver, "app:out", type="Classic"),
                },
                consumers={
                    worker: Consumer(
                        worker, work, Handler("bench.lua", source), concurrency=concurrency, prefetch=prefetch
                    )
                },
            ),
            {driver: self.broker},
            PolicySource.allow_all(),
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110 - counters tell nobody when they change
            await asyncio.sleep(0.002)

    async def run(self, name: str, count: int) -> None:
        """Publish `count` messages and wait until all are acked; both are in the figures."""
        await self.app.start()
        await self.until(lambda: self.app.ready)
        message = Outgoing("app:work.x", "", BODY, Properties(content_type="application/json"))
        confirmed = 0

        def done(error: Exception | None) -> None:
            nonlocal confirmed
            if error:
                raise error
            confirmed += 1

        began, used = time.perf_counter(), cpu()
        sent = 0
        while sent < count:
            for _ in range(min(200, count - sent)):
                self.broker.publish_soon(message, done)
            sent += 200
            while confirmed <= sent - 2000:  # noqa: ASYNC110 - likewise
                await asyncio.sleep(0)
        counters = self.app.counters[self.worker]
        await self.until(lambda: counters.acked >= count)
        report(name, count, time.perf_counter() - began, cpu() - used)
        await self.app.drain()
        if (counters.acked, counters.failed, confirmed) != (count, 0, count):
            sys.exit(f"{name}: acked {counters.acked}, failed {counters.failed}, confirmed {confirmed}")


def through(name: str, source: str, count: int, concurrency: int, prefetch: int = 200) -> None:
    """Run one job on the memory broker."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:

        async def job() -> None:
            await Bench(source, concurrency, prefetch).run(name, count)

        loop.run(job())


JOBS: dict[str, Callable[[str, int], None]] = {
    "lua: a handler that reads two fields": lambda name, count: lua_calls(name, READS, count),
    "lua: a handler that publishes": lambda name, count: lua_calls(name, PUBLISHES, count),
    "memory broker: published, handled, acked": lambda name, count: through(name, READS, count, 1),
    "memory broker: the same at concurrency 10": lambda name, count: through(name, READS, count, 10),
    "memory broker: consume, publish, ack at 100": lambda name, count: through(name, PUBLISHES, count, 100),
}


def main() -> None:
    """Run the jobs."""
    parser = argparse.ArgumentParser(description=__doc__, prog=Path(__file__).name)
    parser.add_argument("--only", default="")
    parser.add_argument("--count", type=int, default=50_000)
    options = parser.parse_args()
    for name, job in JOBS.items():
        if options.only in name:
            job(name, options.count)


if __name__ == "__main__":
    main()
