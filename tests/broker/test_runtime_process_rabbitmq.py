"""A whole runtime process on a real broker: it handles, drains, and changes over to rotated credentials."""

from __future__ import annotations

import asyncio
import contextlib
import json
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
MESSAGES = 300


class Stage:
    """A document with two queues on the broker, its credentials in a folder like a mounted Secret."""

    def __init__(self, rabbitmq: Broker, vhost: str, folder: Path) -> None:
        self.rabbitmq = rabbitmq
        self.vhost = vhost
        self.folder = folder
        self.seen: list[int] = []
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
        (self.folder / "username").write_text(username)
        (self.folder / "password").write_text(password + "\n")

    async def publish(self, number: int) -> None:
        body = json.dumps(number).encode()
        await self.client.publish(Outgoing("todo.x", "", body, Properties(delivery_mode=2)))

    async def ready(self) -> bool:
        return self.runner.ready

    async def all_seen(self) -> bool:
        return len(set(self.seen)) == MESSAGES


@pytest.fixture(name="stage")
async def _stage(rabbitmq: Broker, vhost: str, tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(rabbitmq, vhost, tmp_path)
    first = stage.new_user()
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
    rabbitmq.api("DELETE", f"/users/{first}")


async def test_rotated_credentials_are_taken_up_without_losing_or_repeating_a_message(stage: Stage) -> None:
    def collect(deliveries: list) -> None:
        stage.seen.extend(json.loads(one.body) for one in deliveries)
        subscription.settle(ack=deliveries)

    subscription = await stage.client.consume("done", prefetch=100, on_deliveries=collect)
    for number in range(MESSAGES // 2):
        await stage.publish(number)
    second = stage.new_user()

    async def taken_up() -> bool:
        users = {one["user"] for one in stage.rabbitmq.api("GET", f"/vhosts/{stage.vhost}/connections")}
        return users == {second, stage.rabbitmq.username}

    for number in range(MESSAGES // 2, MESSAGES):
        await stage.publish(number)
    await eventually(taken_up, "only the new user to be connected", timeout=90)
    await eventually(stage.all_seen, "every message to be handled", timeout=60)
    assert len(stage.seen) == MESSAGES
    assert stage.runner.ready
    stage.rabbitmq.api("DELETE", f"/users/{second}")


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
