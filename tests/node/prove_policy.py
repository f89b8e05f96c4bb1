"""From a change of RBAC to its enforcement, over 100 changes each way the broker may be shared.

Run by `make prove-policy`, which writes its table and its plot to docs/proofs; not part of `make test`. A
pod handles a steady stream of pings by publishing to `sent`, which may be forbidden, and to `log`, which
may not: the log says what the runtime does, at the moment it does it. At the broker (PerConsumer) the
Consumer's own credentials are tried, and its permissions read.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import csv
import json
import os
import random
import time
from pathlib import Path
from typing import Any, NamedTuple

import aio_pika
import aiormq
import pytest
import yaml

from harness.plot import cumulative, percentile
from lunaq_operator import kinds, kube

CHANGES = int(os.environ.get("LUNAQ_PROOF_CHANGES", "100"))
RESULTS = Path(__file__).parents[2] / "docs" / "proofs"
LIMIT = 2.0
PATIENCE = 60.0
EVERY = 0.02
RIGHTS = ("publish", "consume")

HANDLER = """
function handle(ping)
  local ok, err = queue.publish("{namespace}:sent", {{n = ping.n}})
  local told, why = queue.publish("{namespace}:log", {{n = ping.n, ok = err == nil}})
  if why then return nil, why end
end
"""

pytestmark = [pytest.mark.timeout(3600)]


class Row(NamedTuple):
    """One change: which, and seconds until it held in the runtime and at the broker (None: not measured)."""

    access: str
    change: str
    runtime: float
    broker: float | None


class Stage:
    """One Consumer in a namespace, whose rights to publish and to consume are bound apart."""

    def __init__(self, node: Any, broker: Any, namespace: str, *, own_users: bool) -> None:
        self.node = node
        self.broker = broker
        self.namespace = namespace
        self.own_users = own_users
        self.vhost = broker.new_vhost()
        self.log: list[tuple[float, bool]] = []
        self.news = asyncio.Event()
        self.live: dict[str, dict[str, Any]] = {}
        self.user = ("", "")

    def manifests(self) -> list[dict[str, Any]]:
        spec = {"uri": self.broker.cluster_bare_uri(self.vhost), "credentialsSecretRef": {"name": "rabbit"}}
        if self.own_users:
            spec["management"] = {"uri": self.broker.cluster_management_uri}
        handler = {"method": "handle", "source": HANDLER.format(namespace=self.namespace)}
        return [
            self.broker.secret(self.namespace, "rabbit", "main"),
            self._ours("Broker", "main", spec),
            *(
                self._ours("Queue", name, {"brokerRef": {"name": "main"}})
                for name in ("pings", "sent", "log")
            ),
            self._ours("Consumer", "prober", {"queueRef": {"name": "pings"}, "handler": handler}),
            self._role("base", [("consumers", "prober", "publish"), ("queues", "log", "publish")]),
            self._role("publish", [("queues", "sent", "publish")]),
            self._role("consume", [("queues", "pings", "consume")]),
            self.binding("base"),
        ]

    def _ours(self, kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        metadata = {"name": name, "namespace": self.namespace}
        return {"apiVersion": "lunaq.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}

    def _role(self, name: str, rights: list[tuple[str, str, str]]) -> dict[str, Any]:
        rules = [
            {"apiGroups": ["lunaq.dev"], "resources": [resource], "resourceNames": [one], "verbs": [verb]}
            for resource, one, verb in rights
        ]
        metadata = {"name": name, "namespace": self.namespace}
        return {"apiVersion": kinds.ROLES.api_version, "kind": "Role", "metadata": metadata, "rules": rules}

    def binding(self, role: str) -> dict[str, Any]:
        return {
            "apiVersion": kinds.ROLES.api_version,
            "kind": "RoleBinding",
            "metadata": {"name": role, "namespace": self.namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": "prober", "namespace": self.namespace}],
        }

    def name(self, queue: str) -> str:
        return f"{self.namespace}:{queue}"

    # What goes on all the time.

    async def ping(self, channel: Any) -> None:
        exchange = await channel.get_exchange(f"{self.name('pings')}.x")
        number = 0
        while True:
            number += 1
            message = aio_pika.Message(json.dumps({"n": number}).encode(), content_type="application/json")
            await exchange.publish(message, routing_key="")
            await asyncio.sleep(EVERY)

    async def read_log(self, channel: Any) -> None:
        queue = await channel.get_queue(self.name("log"))

        async def take(message: Any) -> None:
            self.log.append((time.monotonic(), json.loads(message.body)["ok"]))
            self.news.set()

        await queue.consume(take, no_ack=True)
        await asyncio.Future()

    # What is waited for; each returns the moment at which it was so.

    async def logged(self, since: float, ok: bool | None) -> float:  # noqa: FBT001 - the log's own value
        """Wait for the first run after `since` whose publish went as `ok` says (None: any run)."""
        at = len(self.log)
        while True:
            self.news.clear()
            while at < len(self.log):
                moment, allowed = self.log[at]
                at += 1
                if moment > since and ok in (None, allowed):
                    return moment
            await self.news.wait()

    async def unconsumed(self, channel: Any) -> float:
        while True:
            declared = await channel.declare_queue(self.name("pings"), passive=True)
            if not declared.declaration_result.consumer_count:
                return time.monotonic()
            await asyncio.sleep(EVERY)

    async def at_the_broker(self, right: str, *, given: bool) -> float:
        if right == "publish":
            return await self._publishes(given=given)
        while given != await asyncio.to_thread(self._may_read):  # noqa: ASYNC110 - it can only be asked
            await asyncio.sleep(EVERY)
        return time.monotonic()

    def learn_user(self) -> None:
        """Read the Consumer's own credentials, once: a kubectl each time would be what is measured."""
        data = self.node.get("secret", "prober.broker", "-n", self.namespace)["data"]
        username, password = (base64.b64decode(data[key]).decode() for key in ("username", "password"))
        self.user = username, password

    def _may_read(self) -> bool:
        """Ask the management API for what the Consumer's user may read."""
        held = self.broker.api("GET", f"/users/{self.user[0]}/permissions")
        return any("pings" in one["read"] for one in held)

    async def _publishes(self, *, given: bool) -> float:
        """Try to publish with the Consumer's own credentials, on a new channel each time, until it is so."""
        connection = None
        while True:
            with contextlib.suppress(aiormq.exceptions.AMQPError, OSError, RuntimeError):
                if connection is None or connection.is_closed or connection.closing.done():
                    connection = await aiormq.connect(self.broker.uri(self.vhost, *self.user))
                if await _may_publish(connection, f"{self.name('sent')}.x") == given:
                    await connection.close()
                    return time.monotonic()
            await asyncio.sleep(EVERY)


async def _may_publish(connection: Any, exchange: str) -> bool:
    channel = await connection.channel()
    try:
        await channel.basic_publish(b"{}", exchange=exchange, routing_key="")
    except aiormq.exceptions.ChannelAccessRefused:
        return False
    await channel.close()
    return True


async def measure(stage: Stage, access: str) -> list[Row]:
    rows: list[Row] = []
    client = kube.Kube(await kube.load(str(stage.node.kubeconfig)))
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(client.close)
        connection = await stack.enter_async_context(await aio_pika.connect(stage.broker.uri(stage.vhost)))
        channels = [await connection.channel() for _ in range(3)]
        running = [
            asyncio.create_task(stage.ping(channels[0])),
            asyncio.create_task(stage.read_log(channels[1])),
        ]
        stack.callback(lambda: [task.cancel() for task in running])
        for right in RIGHTS:
            stage.live[right] = await client.create(kinds.ROLE_BINDINGS, stage.binding(right))
        await asyncio.wait_for(stage.logged(time.monotonic(), ok=True), 180)
        if stage.own_users:
            await asyncio.to_thread(stage.learn_user)
        chance = random.Random(6)  # noqa: S311 - pauses that keep no step with anything
        for number in range(CHANGES):
            right, given = RIGHTS[number // 2 % 2], bool(number % 2)
            await asyncio.sleep(chance.uniform(0.3, 1.0))
            rows.append(await change(stage, client, channels[2], access, right, given=given))
            assert not any(task.done() for task in running)
    return rows


async def change(stage: Stage, client: Any, channel: Any, access: str, right: str, *, given: bool) -> Row:
    begun = time.monotonic()
    if given:
        stage.live[right] = await client.create(kinds.ROLE_BINDINGS, stage.binding(right))
    else:
        await client.delete(kinds.ROLE_BINDINGS, stage.live[right])
    if right == "publish":
        runtime = stage.logged(begun, ok=given)
    else:
        runtime = stage.logged(begun, ok=None) if given else stage.unconsumed(channel)
    waits = [runtime] + ([stage.at_the_broker(right, given=given)] if stage.own_users else [])
    moments = await asyncio.wait_for(asyncio.gather(*waits), PATIENCE)
    at_runtime, *at_broker = (moment - begun for moment in moments)
    name = f"{right} {'given back' if given else 'withdrawn'}"
    return Row(access, name, at_runtime, at_broker[0] if at_broker else None)


@pytest.mark.parametrize("access", ["Shared", "PerConsumer"])
async def test_a_change_is_enforced_within_two_seconds(lunaq, node, broker_pod, node_namespace, access):  # noqa: ARG001
    stage = Stage(node, broker_pod, node_namespace, own_users=access == "PerConsumer")
    for batch in (stage.manifests()[:1], stage.manifests()[1:]):
        await asyncio.to_thread(node.apply, yaml.safe_dump_all(batch))
    for queue in ("pings", "sent", "log"):
        wait = ("wait", "--for=condition=Ready", f"queue/{queue}", "-n", node_namespace, "--timeout=120s")
        await asyncio.to_thread(node.kubectl, *wait)
    rows = await measure(stage, access)
    write(access, rows)
    held = [row.runtime for row in rows] + [row.broker for row in rows if row.broker is not None]
    assert percentile(held, 0.95) < LIMIT, f"95 % within {percentile(held, 0.95):.2f} s"


def write(access: str, rows: list[Row]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / f"policy-{access.lower()}.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(Row._fields)
        table.writerows(
            (row.access, row.change, f"{row.runtime:.3f}", "" if row.broker is None else f"{row.broker:.3f}")
            for row in rows
        )
    series: dict[str, list[float]] = {}
    for row in rows:
        series.setdefault(f"runtime, {row.change}", []).append(row.runtime)
    if at_broker := [row.broker for row in rows if row.broker is not None]:
        series["broker, all"] = at_broker
    title = f"From {len(rows)} changes of RBAC to their enforcement, access {access}"
    cumulative(RESULTS / f"policy-{access.lower()}.svg", title, series, LIMIT)
    for name, values in series.items():
        shares = ", ".join(f"{share:.0%} {percentile(values, share):.2f} s" for share in (0.5, 0.95, 1.0))
        print(f"\n{access}: {name}: {len(values)} changes: {shares}")  # noqa: T201 - what the proof is for
