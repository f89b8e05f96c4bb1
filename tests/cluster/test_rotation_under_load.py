"""Credentials change while messages flow: the operator makes them, a whole runtime takes them over.

The kubelet's part, to bring ConfigMaps and the Secret into files, is played by the test.
"""

import asyncio
import base64
import contextlib
import json

import pytest

from harness.waiting import eventually
from lunaq_runtime.brokers.amqp import AmqpBroker
from lunaq_runtime.credentials import MountedCredentials
from lunaq_runtime.entries.parse import parse
from lunaq_runtime.message import Outgoing, Properties
from lunaq_runtime.policy_source import PolicyFile
from lunaq_runtime.runner import Runner
from lunaq_runtime.serve import make_brokers

pytestmark = pytest.mark.usefixtures("operator")

MESSAGES = 600
ROTATIONS = 3
HANDLER = """
local queue = require("queue")
return function(n)
  return nil, select(2, queue.publish("{namespace}:sent", n))
end
"""


class Pod:
    """What the Consumer's Deployment would run, with the files that its kubelet would keep."""

    def __init__(self, app, folder) -> None:
        self.app = app
        self.folder = folder
        self._update()
        document = parse(app.get("configmap", "worker")["data"]["entries.yaml"])
        credentials = MountedCredentials(folder)
        self.policy = PolicyFile(folder / "policy.yaml")
        self.runner = Runner(
            document, self.policy, lambda: make_brokers(document, credentials=credentials), credentials
        )

    def _update(self) -> None:
        (self.folder / "policy.yaml").write_text(
            self.app.get("configmap", "worker.policy")["data"]["policy.yaml"]
        )
        secret = self.app.get("secret", "worker.broker")
        version = self.folder / secret["metadata"]["resourceVersion"]
        if not version.exists():
            version.mkdir()
            for key, value in secret["data"].items():
                (version / key).write_bytes(base64.b64decode(value))
            link = self.folder / "..new"
            link.symlink_to(version)
            link.rename(self.folder / "..data")

    async def kubelet(self) -> None:
        while True:
            await asyncio.to_thread(self._update)
            await asyncio.sleep(0.2)

    @contextlib.asynccontextmanager
    async def running(self):
        await self.runner.start()
        tasks = [asyncio.create_task(one) for one in (self.runner.run(), self.kubelet(), self.policy.watch())]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.runner.drain()


async def test_rotations_under_load_lose_and_repeat_no_message(app, tmp_path):
    app.start_with_own_user(source=HANDLER.format(namespace=app.namespace))
    client = AmqpBroker(app.rabbitmq.uri(app.vhost))
    await client.connect()
    seen = []

    def collect(deliveries):
        seen.extend(json.loads(one.body) for one in deliveries)
        subscription.settle(ack=deliveries)

    subscription = await client.consume(f"{app.namespace}:sent", prefetch=100, on_deliveries=collect)
    users = set(app.users())

    async def publish():
        for number in range(MESSAGES):
            body = json.dumps(number).encode()
            await client.publish(Outgoing(f"{app.namespace}:emails.x", "", body, Properties(delivery_mode=2)))
            await asyncio.sleep(0.02)  # the load goes on for as long as the rotations take

    async with Pod(app, tmp_path).running() as pod:
        await eventually(lambda: _is(pod.runner.ready), "the runtime to consume", 60)
        publishing = asyncio.create_task(publish())
        for rotation in range(ROTATIONS):
            (old,) = app.users()
            app.kubectl("annotate", "consumer", "worker", "--overwrite", f"lunaq.dev/rotate={rotation}")
            await eventually(lambda old=old: _is(old not in app.users()), "the old user to be deleted", 60)
            (new,) = app.users()
            users.add(new)
        await publishing
        await eventually(lambda: _is(len(set(seen)) == MESSAGES), "every message to be handled", 60)
        assert pod.runner.ready
    assert len(seen) == MESSAGES
    assert len(users) == 2  # two slots, in turn
    await client.close()


async def _is(value):
    return value
