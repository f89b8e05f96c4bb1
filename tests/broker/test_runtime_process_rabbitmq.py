"""A whole runtime process on a real broker: it handles, drains, and changes over to rotated credentials."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
from typing import TYPE_CHECKING

import pytest

from harness.waiting import eventually
from lunaq_runtime.brokers.amqp import AmqpBroker
from lunaq_runtime.credentials import MountedCredentials
from lunaq_runtime.entries.parse import parse
from lunaq_runtime.message import Outgoing, Properties
from lunaq_runtime.policy_source import PolicySource
from lunaq_runtime.runner import Runner
from lunaq_runtime.serve import make_brokers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from harness.broker import Broker

HANDLER = """
local queue = require("queue")
function handle(n)
  return nil, select(2, queue.publish("app:done", n))
end
"""
ROTATIONS = 20


class Stage:
    """A document with two queues on the broker, its credentials in a folder like a mounted Secret."""

    def __init__(self, rabbitmq: Broker, vhost: str, folder: Path) -> None:
        self.rabbitmq = rabbitmq
        self.vhost = vhost
        self.folder = folder
        self.seen: list[int] = []
        self.user = ""
        entries = [
            {"id": "broker", "kind": "queue.driver.amqp", "url": rabbitmq.bare_uri(vhost)},
            {"id": "todo", "kind": "queue.queue"},
            {"id": "done", "kind": "queue.queue"},
            {
                "id": "worker",
                "kind": "queue.consumer",
                "queue": "todo",
                "method": "handle",
                "source": HANDLER,
                "concurrency": 4,
            },
        ]
        self.document = parse({"entries": entries})
        credentials = MountedCredentials(folder)
        self.runner = Runner(
            self.document,
            PolicySource.allow_all(),
            lambda: make_brokers(self.document, credentials=credentials),
            credentials,
        )
        self.client = AmqpBroker(rabbitmq.uri(vhost))

    def new_user(self) -> str:
        """Make a user and put it into the folder."""
        name, password = f"u-{secrets.token_hex(4)}", secrets.token_hex(8)
        self.rabbitmq.api("PUT", f"/users/{name}", {"password": password, "tags": ""})
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self.rabbitmq.api("PUT", f"/permissions/{self.vhost}/{name}", everything)
        self.write(name, password)
        return name

    def write(self, username: str, password: str) -> None:
        """Change both at once, as the kubelet does: it swaps the link to a folder."""
        version = self.folder / f"..{secrets.token_hex(4)}"
        version.mkdir()
        (version / "username").write_text(username)
        (version / "password").write_text(password + "\n")
        (self.folder / "..new").symlink_to(version.name)
        (self.folder / "..new").rename(self.folder / "..data")

    async def publish(self, number: int) -> None:
        body = json.dumps(number).encode()
        await self.client.publish(Outgoing("todo.x", "", body, Properties(delivery_mode=2)))

    async def ready(self) -> bool:
        return self.runner.ready


@pytest.fixture(name="stage")
async def _stage(rabbitmq: Broker, vhost: str, tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(rabbitmq, vhost, tmp_path)
    stage.user = stage.new_user()
    await stage.runner.start()
    running = asyncio.create_task(stage.runner.run())
    await eventually(stage.ready, "the runner to consume", timeout=60)
    await stage.client.connect()
    yield stage
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await stage.runner.drain()
    await stage.client.close()
    rabbitmq.api("DELETE", f"/users/{stage.user}")


async def test_twenty_rotations_of_the_credentials_lose_and_repeat_no_message(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An old user is deleted once the new one is in use: a message still in its hands would repeat."""
    monkeypatch.setattr("lunaq_runtime.runner.POLL_SECONDS", 0.05)
    caplog.set_level(logging.INFO, "lunaq_runtime.runner")
    published: list[int] = []
    rotated = asyncio.Event()

    def collect(deliveries: list) -> None:
        stage.seen.extend(json.loads(one.body) for one in deliveries)
        subscription.settle(ack=deliveries)

    async def publish() -> None:
        while not rotated.is_set():
            await stage.publish(len(published))
            published.append(len(published))

    subscription = await stage.client.consume("done", prefetch=100, on_deliveries=collect)
    publishing = asyncio.create_task(publish())
    user = stage.user
    for rotation in range(1, ROTATIONS + 1):
        old, user = user, await asyncio.to_thread(stage.new_user)

        async def in_use(times: int = rotation) -> bool:
            return caplog.text.count("the new credentials are in use") == times

        await eventually(in_use, f"change-over {rotation}", timeout=90)
        await asyncio.to_thread(stage.rabbitmq.api, "DELETE", f"/users/{old}")
    stage.user = user
    rotated.set()
    await publishing

    async def all_seen() -> bool:
        return set(stage.seen) == set(published)

    await eventually(all_seen, "every message to be handled", timeout=60)
    assert len(stage.seen) == len(published)
    assert len(published) > ROTATIONS
    assert stage.runner.ready
    assert stage.runner.reconnects == 0


async def test_credentials_that_do_not_work_leave_the_old_connection_at_work(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lunaq_runtime.runner.CHANGEOVER_SECONDS", 2.0)
    stage.write("nobody", "wrong")

    async def given_up() -> bool:
        return "the old connection stays" in caplog.text

    await eventually(given_up, "the change-over to be given up", timeout=60)
    assert stage.runner.ready
    await stage.publish(1)

    async def handled() -> bool:
        return (await stage.client.queue_info("done")).ready == 1

    await eventually(handled, "a message to be handled by the old connection")
