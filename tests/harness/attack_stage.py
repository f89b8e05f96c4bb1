"""Runs an attack of tests/attacks in a real worker on the memory broker, beside a neighbour that goes on.

`tests/unit/test_attacks.py` calls it in its own process; for an attack that only the end of the process
contains, it starts this module as a program, which tells as JSON what it saw.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.attack_messages import MESSAGES
from harness.waiting import eventually
from lunaq_runtime.app import App
from lunaq_runtime.brokers.memory import MemoryBroker, MemoryServer
from lunaq_runtime.entries.model import Consumer, Document, Driver, Handler, Queue, Retry
from lunaq_runtime.ids import Id
from lunaq_runtime.message import Delivery, Outgoing, Properties
from lunaq_runtime.policy import Policy
from lunaq_runtime.topology import Binding, ExchangeDecl, QueueDecl, Topology

FOLDER = Path(__file__).parents[1] / "attacks"
DRIVER = Id("app", "memory")
ENDS = frozenset(
    {"handled", "raises", "timeout", "memory", "decode_error", "too_large", "process", "refused_at_load"}
)

_GRACE = 1.0
"""Seconds past its time after which a handler counts as stuck; shorter than in a pod, where it is 5."""

ATTACKER = """
local queue, assert = require("queue"), assert
local runs = 0
local function attack(body)
  %s
end
local function again(body)
  %s
end
function handle(body)
  runs = runs + 1
  if body == "innocent" then
    assert(queue.publish("app:log", {innocent = runs}))
  elseif body == "again" then
    return again(body)
  else
    return attack(body)
  end
end
"""

NEIGHBOUR = """
local queue, pairs, type, rawequal, error, assert = require("queue"), pairs, type, rawequal, error, assert
local seen, count = nil, 0
local function all()
  local found = {}
  for name, value in pairs(_G) do
    found[name] = value
    if type(value) == "table" and name ~= "_G" then
      for key, entry in pairs(value) do
        found[name .. "." .. key] = entry
      end
    end
  end
  return found
end
local function same(one, other)
  for name, value in pairs(one) do
    if not rawequal(other[name], value) then
      error(name .. " has changed")
    end
  end
end
function handle(body)
  local now = all()
  seen = seen or now
  same(seen, now)
  same(now, seen)
  assert(require("env").get("PLANTED") == nil)
  count = count + 1
  assert(queue.publish("app:log", {neighbour = count, sent = body}))
end
"""


@dataclass(frozen=True)
class Attack:
    """One entry of a corpus file; `ends` is the containment expected.

    `source` is the body of the handler `function(body)`, `handler` a whole chunk instead, or
    `handler_repeat` its beginning and what it repeats how often; `again` is what runs at a second message.
    `message` names a builder in `attack_messages`. `text` must be in the error. `timeout` is short where it
    is what the attack ends by. `state` is what becomes of the Lua state: `kept` or `lost`. `records` is the
    most that may be logged. `growth` is how many MiB the process may grow.
    """

    family: str
    name: str
    ends: str
    source: str = "return true"
    again: str = ""
    handler: str = ""
    handler_repeat: tuple[str, str, int] | None = None
    message: str = ""
    text: str = ""
    state: str = ""
    timeout: float = 0.0
    memory_mib: int = 16
    records: int = 1100
    growth: int = 200
    codec: str = "json"


def corpus() -> list[Attack]:
    """Read every file of tests/attacks; the family is the file's name."""
    attacks = []
    for file in sorted(FOLDER.glob("*.toml")):
        entries = tomllib.loads(file.read_text())["attack"]
        attacks += [Attack(family=file.stem, **entry) for entry in entries]
    return attacks


@dataclass
class Report:
    """What an attack led to: how its message was settled, what both handlers said, and why it must end."""

    settled: list[str] = field(default_factory=list)
    dead: list[dict[str, Any]] = field(default_factory=list)
    logged: list[dict[str, Any]] = field(default_factory=list)
    process_must_end: str = ""
    load_error: str = ""
    records: int = 0
    growth: int = 0


class _Policies:
    """Both may consume and publish to the log, and nothing else."""

    def policy(self, _consumer: Id) -> Policy:
        return Policy(publish=True, publish_to=("app:log",), consume=("app:attack", "app:peer"))

    def on_change(self, _callback: Any) -> None:
        """Nothing changes."""


class AttackStage:
    """An app with the attacker's consumer and the neighbour's, and an observer of what they leave."""

    def __init__(self, attack: Attack) -> None:
        self.attack = attack
        self.report = Report()
        server = MemoryServer()
        self._observer = MemoryBroker(server)
        source = attack.handler or ATTACKER % (attack.source, attack.again)
        if attack.handler_repeat:
            beginning, part, times = attack.handler_repeat
            source = beginning + part * times
        short = attack.ends in ("timeout", "process") or "time limit" in attack.text
        timeout = attack.timeout or (0.3 if short else 60.0)
        limits = {"timeout": timeout, "memory_limit": attack.memory_mib * 1024 * 1024}
        queues = {
            name: Queue(
                Id("app", name),
                DRIVER,
                f"app:{name}",
                retry=Retry(max_attempts=1, delays_ms=(1000,)),
                codec=attack.codec if name == "attack" else "json",
            )
            for name in ("attack", "peer")
        }
        document = Document(
            namespace="app",
            drivers={DRIVER: Driver(DRIVER, "memory")},
            queues={queue.id: queue for queue in queues.values()},
            consumers={
                Id("app", "attacker"): Consumer(
                    Id("app", "attacker"), queues["attack"].id, Handler("attack.lua", source, **limits)
                ),
                Id("app", "neighbour"): Consumer(
                    Id("app", "neighbour"), queues["peer"].id, Handler("peer.lua", NEIGHBOUR)
                ),
            },
        )
        self.app = App(document, {DRIVER: MemoryBroker(server)}, _Policies())
        self._sent = 0

    async def open(self) -> None:
        await self._observer.connect()
        await self._observer.declare(
            Topology(
                exchanges=(ExchangeDecl("app:log.x", "fanout"),),
                queues=(QueueDecl("app:log"),),
                bindings=(Binding("app:log.x", "app:log"),),
            )
        )
        await self.app.start()
        await eventually(self._is_up, "both consumers to be loaded")
        if self.attack.ends == "process":
            self.app._workers[Id("app", "attacker")]._stuck_grace = _GRACE
        await self._collect("app:log", lambda body, _: self.report.logged.append(json.loads(body)))
        if not self.app.broken:
            await self._collect("app:attack.dead", lambda _, headers: self.report.dead.append(headers))

    async def close(self) -> None:
        await self.app.drain()
        await self._observer.close()

    async def disturb(self) -> None:
        """Send the attack between two messages to the neighbour, and let the attacker go on afterwards."""
        await self._neighbour_handles()
        before = _resident()
        await self._observer.publish(self._message())
        await self._neighbour_handles()
        must_end = asyncio.ensure_future(self.app.wait_failed())
        await eventually(self._is_over, "the attack's message to be settled", timeout=90)
        self.report.growth = (_peak() - before) // 2**20
        if self.attack.ends == "process":
            self.report.process_must_end = str(await asyncio.wait_for(must_end, 60))
            return
        must_end.cancel()
        if self.attack.again:
            await self._send("attack", "again")
            await eventually(self._is_idle, "the second message to be settled", timeout=60)
        await self._send("attack", "innocent")
        await eventually(self._is_innocent, "the attacker to handle an innocent message", timeout=60)
        await self._neighbour_handles()

    async def _neighbour_handles(self) -> None:
        self._sent += 1
        sent = self._sent
        await self._send("peer", sent)

        async def handled() -> bool:
            return {"neighbour": sent, "sent": sent} in self.report.logged

        await eventually(handled, f"the neighbour to handle its message {sent}", timeout=60)

    def _message(self) -> Outgoing:
        if self.attack.message:
            body, properties = MESSAGES[self.attack.message]()
            return Outgoing("app:attack.x", "", body, properties)
        return Outgoing("app:attack.x", "", b'"attack"', Properties(message_id="attack"))

    async def _send(self, queue: str, value: Any) -> None:
        body = (
            value.encode() if self.attack.codec == "raw" and queue == "attack" else json.dumps(value).encode()
        )
        await self._observer.publish(
            Outgoing(f"app:{queue}.x", "", body, Properties(message_id="m", content_type="application/json"))
        )

    async def _collect(self, queue: str, note: Any) -> None:
        def take(deliveries: list[Delivery]) -> None:
            for delivery in deliveries:
                note(delivery.body, dict(delivery.properties.headers))

        await self._observer.consume(queue, prefetch=500, no_ack=True, on_deliveries=take)

    async def _is_up(self) -> bool:
        return self.app.ready or bool(self.app.broken)

    def _counters(self) -> Any:
        return self.app.counters[Id("app", "attacker")]

    async def _is_over(self) -> bool:
        return bool(self.report.dead) or await self._is_idle()

    async def _is_idle(self) -> bool:
        counters = self._counters()
        info = await self._observer.queue_info("app:attack")
        return bool(counters.delivered) and not counters.running and not info.ready

    async def _is_innocent(self) -> bool:
        return any("innocent" in entry for entry in self.report.logged if isinstance(entry, dict))


def _resident() -> int:
    """Forget the peak, and tell what is resident now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


async def run(attack: Attack) -> Report:
    """Run an attack and tell what it led to."""
    stage = AttackStage(attack)
    await stage.open()
    try:
        if stage.app.broken:
            stage.report.load_error = " ".join(stage.app.broken.values())
            await stage._neighbour_handles()
        else:
            await stage.disturb()
    finally:
        await stage.close()
    return stage.report


def main(family: str, name: str) -> None:
    """Run one attack whose process must end, and end it as the runtime does."""
    attack = next(one for one in corpus() if (one.family, one.name) == (family, name))
    report = asyncio.run(run(attack))
    print(json.dumps(vars(report)), flush=True)  # noqa: T201 - the answer to the test
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
