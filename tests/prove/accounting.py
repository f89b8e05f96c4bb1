"""Message accounting for the long proofs.

Each message's id is written down where it is published, at the end of each of its runs, and where it ended;
what does not add up is lost.

Nothing here trusts the runtime's own counters: the publisher notes what the broker confirmed, a handler
writes each run into a ledger queue, dead letters lie in theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aio_pika
import yaml

from harness.processes import Process
from harness.toolchain import ROOT
from harness.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from harness.rabbitmq import RabbitMQ

_STARTER = ThreadPoolExecutor(1)
AWAY = (aio_pika.exceptions.AMQPError, aio_pika.exceptions.ChannelInvalidStateError, OSError)
"""What aio-pika raises where a connection, or a channel of it, has gone in the middle of something."""
PREFETCH = 50
CONCURRENCY = 20
ATTEMPTS = 4

HANDLER = """
local queue, time = require("queue"), require("time")
function handle(order)
  local message = queue.message()
  local attempts, again = message:header("attempts"), message:header("amqp.redelivered")
  local function note(event)
    return queue.publish("app:ledger", {id = order.id, attempt = attempts, again = again, event = event})
  end
  if order.fate == "killer" then
    assert(note("started"))
    time.sleep("20s")
  elseif order.fate == "slow" then
    time.sleep("1500ms")
  end
  local ok, err = note("run")
  if err then return nil, err end
  if order.fate == "dead" or (order.fate == "retry" and attempts == 0) then error("told to fail") end
end
"""


def scale() -> float:
    """Tell how much of the whole proof is wanted: LUNAQ_PROVE_SCALE, 1 by default, less for a rehearsal."""
    return float(os.environ.get("LUNAQ_PROVE_SCALE", "1"))


def document(uri: str) -> dict[str, Any]:
    """Make the entries: a quorum queue with quick retries, a ledger, and the handler above."""
    return {
        "entries": [
            {"id": "broker", "kind": "queue.driver.amqp", "url": uri},
            {
                "id": "work",
                "kind": "queue.queue",
                "lunaq": {"retry": {"maxAttempts": ATTEMPTS, "delays": ["200ms", "1s"]}},
            },
            {"id": "ledger", "kind": "queue.queue"},
            {
                "id": "worker",
                "kind": "queue.consumer",
                "queue": "work",
                "method": "handle",
                "source": HANDLER,
                "prefetch": PREFETCH,
                "concurrency": CONCURRENCY,
            },
        ]
    }


class Runtime:
    """The runtime as a process, started again after each end; `wrap` may put its command into a sandbox."""

    def __init__(
        self,
        uri: str,
        folder: Path,
        wrap: Callable[[Sequence[str]], list[str]] = list,
    ) -> None:
        path = folder / "entries.yaml"
        path.write_text(yaml.safe_dump(document("amqp://broker/")))
        program = ROOT / ".venv" / "bin" / "lunaq-runtime"
        command = [str(program), "run", str(path), "--allow-all", "--health-port", "0"]
        environment = os.environ | {"LUNAQ_BROKER_URL": uri}
        self.process = Process("runtime", wrap(command), folder, environment)

    def start(self) -> None:
        """Start it; it consumes within a second or so."""
        self.process.start()

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.process.kill()

    async def terminate(self) -> None:
        """End it by SIGTERM and wait until it has drained."""
        os.kill(self.process.pid, signal.SIGTERM)
        while self.process.running:  # noqa: ASYNC110 - a process has no event to wait for
            await asyncio.sleep(0.02)


@dataclass
class Books:
    """What was published (id to fate), what ran (id to runs of attempt), and which dead letters there are."""

    published: dict[int, str] = field(default_factory=dict)
    runs: defaultdict[int, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    redelivered: set[int] = field(default_factory=set)
    started: list[int] = field(default_factory=list)
    dead: Counter[int] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def lost(self) -> list[int]:
        """List the confirmed messages that neither reached the end of their run nor a dead letter queue."""
        return [number for number, fate in self.published.items() if not self._ended(number, fate)]

    def repeated(self) -> list[int]:
        """List the messages of which some run, or the dead letter, is there more than once."""
        twice = {number for number, runs in self.runs.items() if max(runs.values()) > 1}
        return sorted(twice | {number for number, count in self.dead.items() if count > 1})

    def wrongly_dead(self) -> list[int]:
        """List the dead letters that nobody told to fail."""
        return [number for number in self.dead if self.published.get(number) not in ("dead", "killer")]

    def _ended(self, number: int, fate: str) -> bool:
        if self.dead[number]:  # whether it should be there says wrongly_dead
            return True
        runs = self.runs.get(number, {})
        match fate:
            case "dead" | "killer":
                return False
            case "retry":
                return any(attempt > 0 for attempt in runs)
            case _:
                return bool(runs)

    def text(self) -> str:
        """Say it in a line."""
        return (
            f"{len(self.published):,} published, {sum(map(Counter.total, self.runs.values())):,} runs,"
            f" {len(self.dead):,} dead letters {dict(self.reasons)}, {len(self.lost())} lost,"
            f" {len(self.repeated())} repeated"
        )


class Client:
    """An ordinary AMQP client that publishes the work and reads the ledger, through broker restarts."""

    def __init__(self, uri: str, books: Books) -> None:
        self._uri = uri
        self._books = books
        self._next = 0
        self._random = random.Random(7)

    async def publish(self, count: int, *, rate: float = 0, fates: dict[str, float] | None = None) -> None:
        """Publish until `count` messages are confirmed; one without a confirm is given up, not repeated.

        Args:
            count: of confirmed messages.
            rate: messages a second at most; 0 for as fast as confirms come.
            fates: share of each fate; the rest succeeds.
        """
        wanted = len(self._books.published) + count
        while len(self._books.published) < wanted:
            with contextlib.suppress(*AWAY, asyncio.TimeoutError):
                connection = await aio_pika.connect(self._uri, timeout=5)
                async with connection:
                    channel = await connection.channel(on_return_raises=True)
                    exchange = await channel.get_exchange("work.x", ensure=False)
                    while (missing := wanted - len(self._books.published)) > 0:
                        batch = [self._new(fates or {}) for _ in range(min(missing, 50))]
                        await asyncio.gather(*(self._publish(exchange, *one) for one in batch))
                        if rate:
                            await asyncio.sleep(len(batch) / rate)
            await asyncio.sleep(0.1)

    async def read(self) -> None:
        """Take what is in the ledger and in the dead letter queue into the books."""
        connection = await aio_pika.connect(self._uri, timeout=10)
        async with connection:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=500)
            for name, take in (("ledger", self._take_run), ("work.dead", self._take_dead)):
                queue = await channel.get_queue(name, ensure=False)
                async with queue.iterator() as incoming:
                    while True:
                        try:
                            message = await asyncio.wait_for(anext(incoming), 2)
                        except (TimeoutError, StopAsyncIteration):
                            break
                        take(message)
                        await message.ack()

    async def consumed(self) -> bool:
        """Tell whether the runtime consumes, so that its topology is whole."""
        with contextlib.suppress(*AWAY):
            connection = await aio_pika.connect(self._uri, timeout=10)
            async with connection:
                channel = await connection.channel()
                queue = await channel.declare_queue("work", passive=True)
                return bool(queue.declaration_result.consumer_count)
        return False

    async def ready(self) -> int:
        """Count what is ready in the work queue and waits for a retry."""
        connection = await aio_pika.connect(self._uri, timeout=10)
        async with connection:
            channel = await connection.channel()
            names = ("work", "work.retry.200", "work.retry.1000")
            found = [await channel.declare_queue(name, passive=True) for name in names]
            return sum(queue.declaration_result.message_count or 0 for queue in found)

    async def ledger(self) -> int:
        """Count what is in the ledger; -1 while the broker is away."""
        try:
            connection = await aio_pika.connect(self._uri, timeout=10)
            async with connection:
                channel = await connection.channel()
                queue = await channel.declare_queue("ledger", passive=True)
                return queue.declaration_result.message_count or 0
        except AWAY:
            return -1

    async def settled(self, seconds: float = 180) -> None:
        """Read until every confirmed message is accounted for; after `seconds` whoever asks finds it lost."""
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            with contextlib.suppress(*AWAY):
                await self.read()
                if not self._books.lost() and await self.ready() == 0:
                    return
            if asyncio.get_running_loop().time() > deadline:
                return
            await asyncio.sleep(0.5)

    def _new(self, fates: dict[str, float]) -> tuple[int, str]:
        self._next += 1
        drawn = self._random.random()
        for fate, share in fates.items():
            drawn -= share
            if drawn < 0:
                return self._next, fate
        return self._next, "plain"

    async def _publish(self, exchange: aio_pika.abc.AbstractExchange, number: int, fate: str) -> None:
        body = json.dumps({"id": number, "fate": fate}).encode()
        mode = aio_pika.DeliveryMode.PERSISTENT
        message = aio_pika.Message(
            body, content_type="application/json", delivery_mode=mode, message_id=f"m-{number}"
        )
        await exchange.publish(message, "", timeout=20)
        self._books.published[number] = fate

    def _take_run(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        entry = json.loads(message.body)
        if entry["event"] == "started":
            self._books.started.append(entry["id"])
            return
        self._books.runs[entry["id"]][entry["attempt"]] += 1
        if entry["again"]:
            self._books.redelivered.add(entry["id"])

    def _take_dead(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        self._books.dead[json.loads(message.body)["id"]] += 1
        self._books.reasons[str(message.headers.get("x_dead_letter_reason"))] += 1


class Stage:
    """A runtime at work on a broker, and the books of what it does."""

    def __init__(self, rabbitmq: RabbitMQ, folder: Path) -> None:
        self.rabbitmq = rabbitmq
        self.uri = new_uri(rabbitmq)
        self.books = Books()
        self.client = Client(self.uri, self.books)
        self.runtime = Runtime(self.uri, folder)
        self._publisher: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run to the end of all that is published meanwhile; nothing that was started outlives it."""
        await self.up()
        try:
            yield
            await self.published()
            await self.end()
        finally:
            if self._publisher:
                self._publisher.cancel()
            if self.runtime.process.running:
                self.runtime.kill()

    def publish(self, messages: int, *, rate: float = 0, fates: dict[str, float]) -> None:
        """Begin to publish; `published` awaits the end."""
        self._publisher = asyncio.create_task(self.client.publish(messages, rate=rate, fates=fates))

    async def published(self) -> None:
        """Wait until the publisher is done."""
        if self._publisher:
            await self._publisher

    async def up(self) -> None:
        self.runtime.start()
        await eventually(self.client.consumed, "the runtime to consume", timeout=60)

    async def at_work(self) -> bool:
        return await self.client.ledger() > 0

    async def goes_on(self) -> None:
        """Wait until the ledger grows: the runtime is up and at work."""
        seen = -1

        async def grows() -> bool:
            nonlocal seen
            if self._publisher and self._publisher.done():
                self._publisher.result()  # what it died of
            before, seen = seen, await self.client.ledger()
            return 0 <= before < seen

        await eventually(grows, "the runtime to handle something", timeout=90)

    async def end(self) -> None:
        """Wait until everything is accounted for, or time is up; the books are complete then."""
        await self.client.settled()
        await self.runtime.terminate()
        await self.client.read()

    def nothing_lost(self, *, interruptions: int) -> None:
        """Check the complete books: what was repeated was in flight at one of so many interruptions."""
        assert self.books.lost() == []
        assert self.books.wrongly_dead() == []
        assert len(self.books.repeated()) <= interruptions * (PREFETCH + CONCURRENCY)

    async def all_in(self) -> None:
        """Wait until everything is accounted for, and check that nothing is lost or wrongly dead."""
        await self.end()
        assert self.books.lost() == []
        assert self.books.wrongly_dead() == []


async def restart(rabbitmq: RabbitMQ) -> None:
    """Restart the broker while everything else goes on.

    In a thread that outlives the test: the kernel ends what a thread has started when that thread ends.
    """
    await asyncio.get_running_loop().run_in_executor(_STARTER, rabbitmq.restart)


def new_uri(rabbitmq: RabbitMQ) -> str:
    """Make a virtual host of the proof's own and give its URI."""
    return rabbitmq.uri(rabbitmq.new_vhost())


def report(name: str, text: str) -> None:
    """Show a figure of a proof, and keep it for docs/proofs.md in the file that LUNAQ_PROVE_REPORT names."""
    print(f"\nprove: {name}: {text}", flush=True)  # noqa: T201 - this is what `make prove` is for
    if path := os.environ.get("LUNAQ_PROVE_REPORT"):
        with open(path, "a", encoding="utf-8") as out:  # noqa: PTH123 - a line, appended
            out.write(f"{name}: {text}\n")
