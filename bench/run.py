"""`make bench`: our runtime and its peers on the same RabbitMQ, in shuffled rounds.

Started by scripts/bench, which has made the peers' environment and built the Go program.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import aiormq
import yaml

import report
from harness.rabbitmq import SUITES, RabbitMQ
from harness.waiting import eventually
from jobs import JOBS, OUT, PEERS, Job, Peer, Tools
from lunaq_runtime.brokers.amqp import AmqpBroker
from lunaq_runtime.entries.parse import parse
from lunaq_runtime.topology import topology_of
from measure import Queues, Result, Running, progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from report import Figures

HERE = Path(__file__).parent


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="the interpreter that has the peers' packages")
    parser.add_argument("--go", required=True, help="the built bench/peers/go")
    parser.add_argument("--rounds", type=int, default=3, help="shuffled rounds; the medians are reported")
    parser.add_argument(
        "--jobs", nargs="*", default=[*(job.name for job in JOBS), "memory"], help="which jobs to run"
    )
    parser.add_argument("--peers", default="", help="only peers whose name contains one of these, by comma")
    parser.add_argument(
        "--rabbitmq",
        choices=SUITES,
        default="",
        help="RabbitMQ's version; by default the installed package's",
    )
    parser.add_argument(
        "--results",
        type=Path,
        help="folder to write to; by default bench/results, or a folder of the version in it",
    )
    options = parser.parse_args()
    options.results = options.results or HERE / "results" / (
        f"rabbitmq-{options.rabbitmq}" if options.rabbitmq else ""
    )
    asyncio.run(run(options))
    subprocess.run([options.python, HERE / "report.py", options.results], check=True)  # noqa: S603 - our own


async def run(options: argparse.Namespace) -> None:
    """Run all rounds and write what came out."""
    words = options.peers.split(",")
    peers = [peer for peer in PEERS if any(word in peer.name for word in words)]
    jobs = [job for job in JOBS if job.name in options.jobs]
    # Whoever ends us is not to leave a broker and a peer behind.
    if task := asyncio.current_task():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    figures: Figures = defaultdict(list)
    rabbitmq = RabbitMQ(suite=SUITES.get(options.rabbitmq, ""))
    rabbitmq.start()
    try:
        with tempfile.TemporaryDirectory(prefix="lq-bench-") as folder:
            tools = Tools(options.python, options.go, Path(folder), rabbitmq.bare_uri())
            stage = Stage(rabbitmq, tools)
            await stage.prepare(peers)
            for number in range(options.rounds):
                for job, peer in _shuffled(jobs, peers):
                    values = await stage.measure(job, peer)
                    figures[job.name, peer.name].append(values)
                    shown = ", ".join(f"{name} {value:,.1f}" for name, value in values.items())
                    say(f"round {number + 1} of {options.rounds}: {job.name}, {peer.name}: {shown}")
    finally:
        rabbitmq.stop()
    if "memory" in options.jobs:
        for _ in range(options.rounds):
            figures["memory", "lunaq"].append(memory_broker())
    options.results.mkdir(parents=True, exist_ok=True)
    report.write(options.results, figures, stage.version)
    say(f"written to {options.results}")


def memory_broker() -> dict[str, float]:
    """Measure messages through the embedded broker: published, handled and acked in one process."""
    job = ["--only", "memory broker: published", "--count", "200000"]
    command = [sys.executable, str(HERE / "inprocess.py"), *job]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 - our own
    rate, cpu = re.findall(r"([\d,.]+) (?:/s|µs CPU)", text)
    return {"rate": float(rate.replace(",", "")), "cpu": float(cpu)}


class Stage:
    """The broker with its queues, and what is needed to run one peer on one job.

    `version` is the broker's, once all is prepared.
    """

    def __init__(self, rabbitmq: RabbitMQ, tools: Tools) -> None:
        self._rabbitmq = rabbitmq
        self._tools = tools
        self._environment = os.environ | {
            "BENCH_URI": rabbitmq.uri(),
            "LUNAQ_BROKER_URL": rabbitmq.uri(),
            "PYTHONPATH": str(HERE / "peers"),
        }

    async def prepare(self, peers: list[Peer]) -> None:
        """Declare the queues: ours with their whole topology, and those of peers that insist on their own."""
        broker = AmqpBroker(self._rabbitmq.uri())
        await broker.connect()
        for job in JOBS:
            document = parse(yaml.safe_load(self._tools.entries(job).read_text()))
            for queue in document.queues.values():
                await broker.declare(topology_of(queue))
        await broker.close()
        for peer in peers:
            if peer.queue:
                self._tool([self._tools.python, f"{HERE}/peers/{peer.queue.removeprefix('bench-')}_peer.py"])
        connection = await aiormq.connect(self._rabbitmq.uri())
        self.version = connection.server_properties["version"]
        self._queues = Queues(await connection.channel())

    async def measure(self, job: Job, peer: Peer) -> dict[str, float]:
        """Run one peer on one job, on queues that hold nothing else."""
        queue = peer.queue or job.queue
        for name in (queue, OUT):
            await self._queues.empty(name)
        count = job.count * peer.times
        if not job.rate:
            body = self._tools.body(peer)
            self._tool([self._tools.go, "fill", "-queue", queue, "-count", str(count), "-body", body])
        log = self._tools.folder / "peer.log"
        running = Running(peer.command(job, self._tools), self._environment, log)
        try:
            if job.rate:
                return await self._latency(job, peer, running)
            watched = OUT if job.relay else queue
            result: Result = await progress(running, self._queues, watched, count, fills=job.relay)
        finally:
            running.stop()
        if left := await self._queues.ready(queue):
            say(f"{peer.name} left {left} messages unacknowledged")
        return {"rate": result.rate, "cpu": result.cpu}

    async def _latency(self, job: Job, peer: Peer, running: Running) -> dict[str, float]:
        async def consuming() -> bool:
            running.check()
            return await self._queues.consumers(job.queue) > 0

        await eventually(consuming, f"{peer.name} to consume")
        arguments = ["-queue", job.queue, "-out", OUT, "-count", str(job.count), "-rate", str(job.rate)]
        command = [self._tools.go, "latency", *arguments, "-body", self._tools.body(peer)]
        answer: dict[str, float] = json.loads(await asyncio.to_thread(self._tool, command))
        return answer

    def _tool(self, command: list[str]) -> str:
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stderr[-2000:]}")
        return done.stdout


def _shuffled(jobs: list[Job], peers: list[Peer]) -> Iterator[tuple[Job, Peer]]:
    """Give a round's runs: the peers of a job one after the other, so that they have the same hour."""
    for job in random.sample(jobs, len(jobs)):
        mine = [peer for peer in peers if job.name in peer.jobs]
        for peer in random.sample(mine, len(mine)):
            yield job, peer


def say(text: str) -> None:
    """Tell how far it is."""
    print(f"bench: {text}", flush=True)


if __name__ == "__main__":
    main()
