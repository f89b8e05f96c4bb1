"""Watches a peer from outside: how far its queue is, and the CPU time of its processes. Called by run.py.

Nothing is asked of the peer, so all are measured alike, start-up is left out, and no one counts itself.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import aiormq.abc

_TICKS = os.sysconf("SC_CLK_TCK")
_POLL = 0.01
_STALLED = 60.0
SKIPPED = 0.05
"""Share of the messages after which measuring begins: connections and caches are warm by then."""


@dataclass(frozen=True)
class Result:
    """Messages a second, and microseconds of CPU a message, of all processes of a peer."""

    rate: float
    cpu: float


class Queues:
    """Asks the broker how many messages are ready, by passive declares: never stale, and cheap."""

    def __init__(self, channel: aiormq.abc.AbstractChannel) -> None:
        self._channel = channel

    async def ready(self, queue: str) -> int:
        """Count the messages ready for delivery."""
        return (await self._channel.queue_declare(queue, passive=True)).message_count or 0

    async def consumers(self, queue: str) -> int:
        """Count the consumers."""
        return (await self._channel.queue_declare(queue, passive=True)).consumer_count or 0

    async def empty(self, queue: str) -> int:
        """Throw away what is ready, and count it."""
        return (await self._channel.queue_purge(queue)).message_count or 0


class Running:
    """A peer's processes; `log` is where they write to."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(  # noqa: S603 - the peers of this folder
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=Path(__file__).parent / "peers",
                env=environment,
                start_new_session=True,
            )

    def cpu(self) -> float:
        """Sum the CPU seconds of the process and its descendants."""
        return sum(_cpu_seconds(pid) for pid in _tree(self._process.pid))

    def check(self) -> None:
        """Raise where the peer has ended by itself."""
        if self._process.poll() is not None:
            raise RuntimeError(f"the peer ended: {self._log.read_text()[-2000:]}")

    def stop(self) -> None:
        """End it: politely first, for it may hold messages."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(20)


async def progress(running: Running, queues: Queues, queue: str, count: int, *, fills: bool) -> Result:
    """Measure from the first few messages to the last: `fills` tells whether `queue` takes or gives them.

    What has come in is counted and thrown away, as if somebody consumed it. A queue that grows to 80,000 is
    no steady state: RabbitMQ 3.10 then takes 13,000 messages a second where it takes 21,000, whoever the
    client is, for it is busy with that queue's garbage.
    """
    taken = 0

    async def done() -> int:
        nonlocal taken
        if not fills:
            return count - await queues.ready(queue)
        taken += await queues.empty(queue)
        return taken

    first = last = await done()
    began = ended = time.perf_counter()
    cpu = running.cpu()
    moved = began
    started = False
    while last < count:
        await asyncio.sleep(_POLL)
        running.check()
        seen = await done()
        now = time.perf_counter()
        if seen != last:
            moved = now
        elif now - moved > _STALLED:
            raise RuntimeError(f"stalled at {seen} of {count}")
        last, ended = seen, now
        if not started and seen >= count * SKIPPED:
            started = True
            first, began, cpu = seen, now, running.cpu()
    messages = last - first
    return Result(messages / (ended - began), (running.cpu() - cpu) / messages * 1e6)


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _tree(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        try:
            tasks = list(Path(f"/proc/{parent}/task").iterdir())
            found += [int(one) for task in tasks for one in (task / "children").read_text().split()]
        except OSError:
            continue
    return found
