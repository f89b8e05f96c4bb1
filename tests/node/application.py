"""One mail application on the node: examples/emails in a namespace of its own, seen from outside.

The tests of this folder drive it with kubectl and an ordinary AMQP client (aio-pika), as a user would.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections import Counter
from pathlib import Path
from typing import Any

import aio_pika
import yaml

EXAMPLE = Path(__file__).parents[2] / "examples" / "emails"


class Application:
    """The example in a namespace; `slow` lets each handler take that many milliseconds longer."""

    def __init__(self, node: Any, broker: Any, folder: Path, *, slow: int = 0) -> None:
        self.node = node
        self.broker = broker
        self.namespace = f"lq-{secrets.token_hex(4)}"
        self.folder = folder
        for source in EXAMPLE.glob("*.yaml"):
            text = source.read_text().replace("namespace: app #", f"namespace: {self.namespace} #")
            if source.name == "consumer.yaml" and slow:
                begin = "function handle_email(mail)\n"
                assert begin in text
                text = text.replace(begin, f'{begin}        time.sleep("{slow}ms")\n')
            (folder / source.name).write_text(text)

    def kubectl(self, *args: str, **options: Any) -> str:
        """Run kubectl in the application's namespace; return what it printed."""
        return str(self.node.kubectl("-n", self.namespace, *args, **options).stdout)

    def install(self) -> None:
        """Do what the README says: namespace, labelled Secret, `kubectl apply -f` of the folder."""
        self.node.kubectl("create", "namespace", self.namespace)
        self.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(self._surroundings()))
        self.kubectl("apply", "-f", str(self.folder))
        self.wait_ready()

    def _surroundings(self) -> list[dict[str, Any]]:
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "rabbitmq-credentials", "labels": {"lunaq.dev/broker": "rabbitmq"}},
            "stringData": {"username": self.broker.username, "password": self.broker.password},
        }
        # The example's Broker says amqp://rabbitmq:5672; the broker itself lives in a namespace of its own.
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "rabbitmq"},
            "spec": {"type": "ExternalName", "externalName": self.broker.cluster_host},
        }
        return [secret, service]

    def wait_ready(self) -> None:
        """Wait until the Consumer says it is ready, as `kubectl wait` sees it."""
        self.kubectl("wait", "--for=condition=Ready", "consumer/email-worker", "--timeout=180s")

    def queue(self, name: str) -> str:
        """Return the broker-side name of one of the application's queues."""
        return f"{self.namespace}:{name}"

    async def publish(self, mails: list[dict[str, Any]]) -> list[str]:
        """Publish mails with confirms, as any AMQP client can; return their message ids."""
        ids = [secrets.token_hex(8) for _ in mails]
        async with await aio_pika.connect(self.broker.uri()) as connection:
            channel = await connection.channel(publisher_confirms=True)
            exchange = await channel.get_exchange(f"{self.queue('emails')}.x")
            for start in range(0, len(mails), 100):
                await asyncio.gather(
                    *(
                        exchange.publish(
                            aio_pika.Message(
                                json.dumps(mail).encode(),
                                message_id=message_id,
                                content_type="application/json",
                                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                            ),
                            routing_key="",
                        )
                        for mail, message_id in zip(
                            mails[start : start + 100], ids[start : start + 100], strict=True
                        )
                    )
                )
        return ids

    async def _declared(self, name: str) -> Any:
        """Ask the broker itself by a passive declare: its management API is seconds behind."""
        async with await aio_pika.connect(self.broker.uri()) as connection:
            channel = await connection.channel()
            queue = await channel.declare_queue(self.queue(name), passive=True)
            return queue.declaration_result

    async def depth(self, name: str) -> int:
        """Return how many messages are ready in a queue."""
        return int((await self._declared(name)).message_count or 0)

    async def wait_unconsumed(self, name: str, seconds: float = 60) -> None:
        """Wait until nobody consumes a queue any more."""
        deadline = asyncio.get_running_loop().time() + seconds
        while (await self._declared(name)).consumer_count:
            assert asyncio.get_running_loop().time() < deadline, f"{self.queue(name)} is still consumed"
            await asyncio.sleep(0.1)

    async def wait_depth(self, name: str, at_least: int, seconds: float = 180) -> int:
        """Wait until a queue holds at least so many messages; a broker that is away is waited for."""
        deadline = asyncio.get_running_loop().time() + seconds
        depth = -1
        while asyncio.get_running_loop().time() < deadline:
            with contextlib.suppress(aio_pika.exceptions.AMQPError, OSError):
                depth = await self.depth(name)
            if depth >= at_least:
                return depth
            await asyncio.sleep(0.2)
        raise AssertionError(f"{self.queue(name)} holds {depth} messages after {seconds} s, not {at_least}")

    async def ledger(self) -> list[dict[str, Any]]:
        """Take all records out of the ledger, the queue `sent`."""
        records = []
        async with await aio_pika.connect(self.broker.uri()) as connection:
            channel = await connection.channel()
            queue = await channel.get_queue(self.queue("sent"))
            while (message := await queue.get(no_ack=True, fail=False)) is not None:
                records.append(json.loads(message.body))
        return records

    async def wait_idle(self, seconds: float = 120) -> None:
        """Wait until nothing is ready or waiting (asked now), nor unacknowledged (as last told)."""
        names = ["emails", *(f"emails.retry.{ms}" for ms in (1000, 2000))]

        def told_idle() -> bool:
            queues = self.broker.api("GET", "/queues/%2F?disable_stats=true&enable_queue_totals=true")
            held = [queue for queue in queues if queue["name"] in map(self.queue, names)]
            return len(held) == len(names) and all(queue.get("messages", 1) == 0 for queue in held)

        deadline = asyncio.get_running_loop().time() + seconds
        while any([await self.depth(name) for name in names]) or not await asyncio.to_thread(told_idle):
            assert asyncio.get_running_loop().time() < deadline, f"{names} are not empty after {seconds} s"
            await asyncio.sleep(0.2)

    def pods(self) -> list[str]:
        """Name the consumer's pods that are not on their way out."""
        found = json.loads(self.kubectl("get", "pods", "-l", "lunaq.dev/consumer=email-worker", "-o", "json"))
        return [
            pod["metadata"]["name"] for pod in found["items"] if "deletionTimestamp" not in pod["metadata"]
        ]

    def remove(self) -> None:
        """Delete the namespace without waiting; for the end of a test."""
        self.node.kubectl("delete", "namespace", self.namespace, "--wait=false", check=False)


def handled(records: list[dict[str, Any]]) -> Counter[str]:
    """Count the ledger's records by message id."""
    return Counter(record["message_id"] for record in records)
