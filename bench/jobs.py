"""What is measured, and who takes part: plain data and the command lines of the peers. Read by run.py."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml

HERE = Path(__file__).parent
PREFETCH = 200
"""Messages that a peer may hold, and relays at a time, for Go's pipeline has no other limit either."""
GO_WIDE = 2000
"""The best one of Go, which runs once more with it: it relays most (of 200, 500, 1000, 2000 and 4000)."""
WIDE = 1000
"""The best one of ours, likewise (of 200, 700, 1000, 1500 and 2000)."""
HANDLERS = 16
"""Handlers of ours at a time in a relay: one that only waits for its last confirm does not count."""
BODY = '{"id": NUMBER, "amount": 12.5, "customer": "c-48213", "kind": "order", "note": "%s"}' % ("x" * 110)
"""A message of some 200 bytes; NUMBER becomes its number."""


@dataclass(frozen=True)
class Job:
    """One kind of work; `queue` is consumed, `out` is where a relay publishes to."""

    name: str
    text: str
    count: int
    queue: str
    relay: bool = False
    rate: int = 0


JOBS = (
    Job("drain-classic", "drain a durable classic queue", 40_000, "bench.classic"),
    Job("drain-quorum", "drain a quorum queue", 40_000, "bench.quorum"),
    Job("relay", "consume, publish with confirm, ack", 20_000, "bench.classic", relay=True),
    Job("latency", "the same at 500 messages a second: publish to answer", 5_000, "bench.classic", True, 500),
)
OUT = "bench.out"


@dataclass(frozen=True)
class Peer:
    """Someone who takes part in `jobs`, with `acks` at a time.

    With `stamp`, what is relayed has a message id and the time, as ours has to have (lua-api.md 1.3).
    `prefetch` is how many messages it may hold, and relays at a time.
    The fast ones get `times` as many messages: else they were done before their CPU can be told, in 10 ms.
    """

    name: str
    jobs: tuple[str, ...] = ("drain-classic", "drain-quorum", "relay")
    acks: int = 1
    stamp: bool = False
    prefetch: int = PREFETCH
    times: int = 1
    module: str = ""
    queue: str = ""
    body: str = BODY
    declare: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, job: Job, tools: Tools) -> list[str]:
        """Build the command line that runs until it is told to stop."""
        if self.name.startswith("lunaq"):
            return [str(tools.runtime), "run", str(tools.entries(job, self.prefetch)), "--health-port", "0"]
        if self.name.startswith("dramatiq"):
            return [tools.python, "-m", "dramatiq", "dramatiq_peer", "--processes", "1", "--threads", "8"]
        if self.name.startswith("taskiq"):
            return [tools.python, "-m", "taskiq", "worker", "taskiq_peer:broker", "--workers", "1"]
        arguments = ["--queue", job.queue, "--prefetch", str(self.prefetch), "--acks", str(self.acks)]
        arguments += ["--concurrency", str(self.prefetch)]
        arguments += ["--out", f"{OUT}.x"] if job.relay else []
        arguments += ["--stamp"] if self.stamp else []
        if self.name.startswith("Go"):
            return [tools.go, "consume", *(one.replace("--", "-", 1) for one in arguments)]
        return [tools.python, str(HERE / "peers" / self.module), *arguments]


_DRAMATIQ = {
    "queue_name": "bench-dramatiq",
    "actor_name": "order",
    "args": ["BODY"],
    "kwargs": {},
    "options": {},
    "message_id": "b",
    "message_timestamp": 1,
}
_TASKIQ = {"task_id": "b", "task_name": "order", "labels": {}, "args": ["BODY"], "kwargs": {}}


def _wrapped(envelope: dict[str, object]) -> str:
    """Put the message into the envelope of a peer that insists on its own."""
    return json.dumps(envelope).replace('"BODY"', BODY)


PEERS = (
    Peer("lunaq", ("drain-classic", "drain-quorum", "relay", "latency"), times=4),
    Peer(
        "Go, `multiple` acks by 50", ("drain-classic", "drain-quorum", "relay", "latency"), acks=50, times=4
    ),
    Peer(f"lunaq, prefetch {WIDE}", prefetch=WIDE, times=4),
    Peer(f"Go, `multiple` acks by 50, prefetch {GO_WIDE}", acks=50, prefetch=GO_WIDE, times=4),
    Peer("Go, `multiple` acks by 50, with id and time", ("relay",), acks=50, times=4, stamp=True),
    Peer("Go, single acks", ("drain-classic", "drain-quorum", "relay", "latency"), times=4),
    Peer("aiormq + uvloop, acks by 50", acks=50, module="aiormq_peer.py"),
    Peer("aio-pika", ("drain-classic", "drain-quorum", "relay", "latency"), module="aio_pika_peer.py"),
    Peer("pika", module="pika_peer.py"),
    Peer("FastStream", module="faststream_peer.py"),
    Peer("dramatiq", ("drain-classic",), queue="bench-dramatiq", body=_wrapped(_DRAMATIQ)),
    Peer("taskiq", ("drain-classic",), queue="bench-taskiq", body=_wrapped(_TASKIQ)),
)


@dataclass(frozen=True)
class Tools:
    """Where the programs of this run are; `folder` is a temporary one."""

    python: str
    go: str
    folder: Path
    host_uri: str

    @property
    def runtime(self) -> Path:
        """Our own runtime, from the environment this runs in."""
        return Path(sys.executable).parent / "lunaq-runtime"

    def body(self, peer: Peer) -> str:
        """Write what is published for `peer` into a file."""
        path = self.folder / f"{peer.queue or 'plain'}.json"
        path.write_text(peer.body)
        return str(path)

    def entries(self, job: Job, prefetch: int = PREFETCH) -> Path:
        """Write the entries document of our runtime: policy, retries and all, as the operator would."""
        kind = "quorum" if job.queue.endswith("quorum") else "classic"
        handler = HANDLER_RELAY if job.relay else HANDLER_DRAIN
        document = {
            "namespace": "bench",
            "entries": [
                {"id": "broker", "kind": "queue.driver.amqp", "url": self.host_uri},
                {
                    "id": "in",
                    "kind": "queue.queue",
                    "driver": "broker",
                    "queue_name": job.queue,
                    "lunaq": {"type": kind, "declare": False},
                },
                {
                    "id": "out",
                    "kind": "queue.queue",
                    "driver": "broker",
                    "queue_name": OUT,
                    "lunaq": {"type": "classic", "declare": False},
                },
                {
                    "id": "worker",
                    "kind": "queue.consumer",
                    "queue": "in",
                    "method": "handle",
                    "source": handler,
                    "prefetch": prefetch,
                    "concurrency": HANDLERS if job.relay else 1,
                },
                {
                    "id": "rights",
                    "kind": "security.policy",
                    "consumer": "worker",
                    "consume": ["bench:in"],
                    "publish": True,
                    "publishTo": ["bench:out"],
                },
            ],
        }
        path = self.folder / f"{job.name}.yaml"
        path.write_text(yaml.safe_dump(document))
        return path


HANDLER_DRAIN = """
function handle(order)
  if order.id == nil or order.amount == nil then error("the message lacks id or amount") end
end
"""
HANDLER_RELAY = """
function handle(order)
  if order.id == nil or order.amount == nil then error("the message lacks id or amount") end
  local ok, err = queue.publish("bench:out", order)
  return ok, err
end
"""
