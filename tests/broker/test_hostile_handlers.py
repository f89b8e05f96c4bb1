"""Hostile handlers in a runtime process on RabbitMQ: all else goes on, and only they are dead letters."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import urllib.error
import urllib.request
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from harness.processes import Process
from harness.waiting import eventually, wait_for
from lunaq_runtime.brokers.amqp import AmqpBroker
from lunaq_runtime.message import Outgoing, Properties

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from harness.broker import Broker
    from lunaq_runtime.message import Delivery

HEARTBEAT = 1
TIMEOUT = 4
"""Seconds; a process that sent no heartbeat for that long would have lost its connection."""

HANDLER = """
local queue = require("queue")
function handle(body)
  if body.attack == "loop" then
    while true do end
  elseif body.attack == "pattern" then
    return ("a"):rep(100000):find(("a*"):rep(12) .. "b")
  elseif body.attack == "memory" then
    local t = {}
    while true do t[#t + 1] = ("x"):rep(4000000) .. #t end
  elseif body.attack == "call" then
    local metatable = {}
    local callable = setmetatable({}, metatable)
    metatable.__call = callable
    callable()
  end
  assert(queue.publish("app:done", {n = body.n}))
end
"""


class Site:
    """A runtime process on a virtual host of its own, and a client that publishes and collects."""

    def __init__(self, rabbitmq: Broker, vhost: str, folder: Path) -> None:
        self.rabbitmq = rabbitmq
        self.vhost = vhost
        self.folder = folder
        self.done: list[int] = []
        self.dead: list[Delivery] = []
        self.client = AmqpBroker(rabbitmq.uri(vhost))
        self.processes: list[Process] = []
        retry = {"retry": {"maxAttempts": 1, "delays": ["1s"]}}
        consumer = {
            "kind": "queue.consumer",
            "method": "handle",
            "source": HANDLER,
            "lunaq": {"timeout": f"{TIMEOUT}s", "memoryLimit": "64Mi"},
            "concurrency": 4,
        }
        document = {
            "entries": [
                {
                    "id": "broker",
                    "kind": "queue.driver.amqp",
                    "url": rabbitmq.uri(vhost),
                    "heartbeat": f"{HEARTBEAT}s",
                },
                {"id": "hostile", "kind": "queue.queue", "lunaq": retry},
                {"id": "peer", "kind": "queue.queue", "lunaq": retry},
                {"id": "done", "kind": "queue.queue"},
                {"id": "attacker", "queue": "hostile", **consumer},
                {"id": "neighbour", "queue": "peer", **consumer},
            ]
        }
        (folder / "app.yaml").write_text(json.dumps(document))

    def start(self) -> Process:
        """Start a runtime process, as a kubelet does after the first."""
        name = f"runtime-{len(self.processes)}"
        command = [sys.executable, "-m", "lunaq_runtime", "run", str(self.folder / "app.yaml"), "--allow-all"]
        process = Process(name, [*command, "--health-host", "127.0.0.1", "--health-port", "0"], self.folder)
        process.start()
        self.processes.append(process)
        process.wait_until(lambda: self.status("/readyz") == 200, "the runtime to be ready", timeout=90)
        return process

    def status(self, path: str) -> int:
        port = re.search(r"on port (\d+)", self.processes[-1].log.read_text())
        if port is None:
            return 0
        try:
            url = f"http://127.0.0.1:{port[1]}{path}"
            with urllib.request.urlopen(url, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    async def publish(self, queue: str, body: Any) -> None:
        identity = str(body.get("n", body.get("attack")))
        properties = Properties(message_id=identity, delivery_mode=2, content_type="application/json")
        await self.client.publish(Outgoing(f"{queue}.x", "", json.dumps(body).encode(), properties))

    async def collect(self, queue: str, note: Any) -> None:
        def take(deliveries: list[Delivery]) -> None:
            for delivery in deliveries:
                note(delivery)
            subscription.settle(ack=deliveries)

        subscription = await self.client.consume(queue, prefetch=100, on_deliveries=take)

    async def connected_since(self) -> set[int]:
        """Tell when the runtime's connections were made; the statistics lag behind by seconds."""
        connections = await asyncio.to_thread(self.rabbitmq.api, "GET", f"/vhosts/{self.vhost}/connections")
        return {
            one["connected_at"]
            for one in connections
            if "lunaq-runtime" in str(one.get("client_properties", {}).get("connection_name", ""))
        }


@pytest.fixture(name="site")
async def _site(rabbitmq: Broker, vhost: str, tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(rabbitmq, vhost, tmp_path)
    await asyncio.to_thread(site.start)
    await site.client.connect()
    await site.collect("done", lambda delivery: site.done.append(json.loads(delivery.body)["n"]))
    await site.collect("hostile.dead", site.dead.append)
    yield site
    for process in site.processes:
        process.stop()
    await site.client.close()


async def _everything_is_handled(site: Site, sent: int) -> None:
    async def handled() -> bool:
        return set(site.done) == set(range(sent))

    await eventually(handled, f"all of {sent} innocent messages", timeout=90)


async def test_what_a_hook_ends_disturbs_neither_probes_nor_heartbeats_nor_neighbours(site: Site) -> None:
    async def seen() -> bool:
        return len(await site.connected_since()) == 1

    await eventually(seen, "the broker to show the connection", timeout=60)
    before = await site.connected_since()
    sent = 0
    for attack in ("loop", "pattern", "memory"):
        for body in ({"n": sent}, {"attack": attack}, {"n": sent + 1}):
            await site.publish("hostile", body)
        sent += 2
    probes: Counter[tuple[str, int]] = Counter()
    while len(site.dead) < 3:
        await site.publish("peer", {"n": sent})
        sent += 1
        for path in ("/healthz", "/readyz"):
            probes[path, await asyncio.to_thread(site.status, path)] += 1
        await asyncio.sleep(0.05)  # a pace, not a condition
    assert set(probes) == {("/healthz", 200), ("/readyz", 200)}
    await _everything_is_handled(site, sent)
    assert len(site.done) == sent
    found = {one.properties.message_id: one.properties.headers for one in site.dead}
    assert set(found) == {"loop", "pattern", "memory"}
    assert {headers["x_dead_letter_reason"] for headers in found.values()} == {"max_attempts"}
    assert found["loop"]["x_error_kind"] == found["pattern"]["x_error_kind"] == "Timeout"
    assert "memory limit" in found["memory"]["x_error"]
    assert await site.connected_since() == before
    assert site.processes[0].running


async def test_what_no_hook_ends_restarts_the_process_and_loses_nobody_elses_message(site: Site) -> None:
    for body in ({"n": 0}, {"attack": "call"}, {"n": 1}):
        await site.publish("hostile", body)
    sent = 2
    probes: Counter[int] = Counter()
    process = site.processes[0]
    while not site.dead:
        await site.publish("peer", {"n": sent})
        sent += 1
        if process.running:
            try:
                probes[await asyncio.to_thread(site.status, "/healthz")] += 1
            except OSError:
                assert site.dead or not process.running
        await asyncio.sleep(0.05)  # a pace, not a condition
    assert probes[200] > 10
    await asyncio.to_thread(wait_for, lambda: not process.running, "the process to end by itself", timeout=90)
    assert "cannot be stopped: the process must end" in process.log.read_text()
    await asyncio.to_thread(site.start)
    await _everything_is_handled(site, sent)
    assert [one.properties.message_id for one in site.dead] == ["call"]
    headers = site.dead[0].properties.headers
    assert (headers["x_dead_letter_reason"], headers["x_error_kind"]) == ("timeout", "Timeout")
    assert await site.client.queue_info("peer.dead")
    assert (await site.client.queue_info("peer.dead")).ready == 0
    assert (await site.client.queue_info("hostile")).ready == 0
