"""What a stolen credential of a Consumer reaches on a real RabbitMQ: nothing but what its policy says.

The user is made as the operator makes it, a whole runtime works with it meanwhile, and the attacker is an
ordinary AMQP client with the very same name and password.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import re
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiormq
import pytest
from aiormq.exceptions import ChannelAccessRefused
from pamqp import constants
from pamqp.commands import Basic

from harness.waiting import eventually
from lunaq_operator import broker_users
from lunaq_operator.management import HttpManagement
from lunaq_operator.reconcile.pool import Target
from lunaq_runtime.brokers.amqp import AmqpBroker
from lunaq_runtime.credentials import MountedCredentials
from lunaq_runtime.entries.parse import parse
from lunaq_runtime.message import Outgoing, Properties
from lunaq_runtime.policy import Policy
from lunaq_runtime.policy_source import PolicyFile
from lunaq_runtime.runner import Runner
from lunaq_runtime.serve import make_brokers
from lunaq_runtime.topology import ExchangeDecl, Topology, topology_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from harness.broker import Broker

PASSWORD = "stolen"
POLICY = Policy(publish=True, publish_to=("app:done",), consume=("app:todo",))
HANDLER = """
local queue = require("queue")
function handle(n)
  return nil, select(2, queue.publish("app:done", n))
end
"""
FOREIGN = "billing"
ALLOWED = "app:done.x"
OTHER = "app:other.x"


class Stage:
    """Three Queues, a Consumer of `todo` that publishes to `done`, and a foreign exchange."""

    def __init__(self, rabbitmq: Broker, vhost: str, folder: Path) -> None:
        self.rabbitmq, self.vhost = rabbitmq, vhost
        place = broker_users.Place(vhost, "app", "main")
        self.user = broker_users.slots(place, "app", "worker").a
        queues = [
            {
                "id": name,
                "kind": "queue.queue",
                "queue_name": f"app:{name}",
                "lunaq": {"declare": False},
            }
            for name in ("todo", "done", "other")
        ]
        self.document = parse(
            {
                "entries": [
                    {"id": "broker", "kind": "queue.driver.amqp", "url": rabbitmq.bare_uri(vhost)},
                    *queues,
                    {
                        "id": "worker",
                        "kind": "queue.consumer",
                        "queue": "todo",
                        "method": "handle",
                        "source": HANDLER,
                    },
                ]
            }
        )
        (folder / "username").write_text(self.user)
        (folder / "password").write_text(PASSWORD)
        policy = folder / "policy.yaml"
        entry = {
            "name": "worker",
            "kind": "security.policy",
            "consumer": "app:worker",
            "publish": True,
            "publishTo": list(POLICY.publish_to),
            "consume": list(POLICY.consume),
        }
        policy.write_text(json.dumps({"version": "1.0", "namespace": "app", "entries": [entry]}))
        credentials = MountedCredentials(folder)
        self.runner = Runner(
            self.document,
            PolicyFile(policy),
            lambda: make_brokers(self.document, credentials=credentials),
            credentials,
        )
        self.admin = AmqpBroker(rabbitmq.uri(vhost))

    async def make_user(self) -> None:
        administrator = Target("", "amqp://", self.rabbitmq.username, self.rabbitmq.password)
        management = HttpManagement(self.rabbitmq.management_uri, administrator)
        granted = broker_users.grants(POLICY, "app:todo", "app:todo", retries=True, named={})
        await management.put_user(self.user, broker_users.hash_password(PASSWORD, b"salt"))
        await management.grant(self.vhost, self.user, granted.texts())
        await management.close()

    async def connect(self, vhost: str = "") -> Any:
        return await aiormq.connect(self.rabbitmq.uri(vhost or self.vhost, self.user, PASSWORD))

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[Any]:
        """Lend an attacker's channel: a refusal closes it."""
        connection = await self.connect()
        try:
            yield await connection.channel(publisher_confirms=False)
        finally:
            with suppress(Exception):
                await connection.close()

    async def publish(self, number: int) -> None:
        await self.admin.publish(
            Outgoing("app:todo.x", "", str(number).encode(), Properties(delivery_mode=2))
        )

    async def ready(self, queue: str) -> int:
        return (await self.admin.queue_info(queue)).ready

    async def wait_done(self, count: int) -> None:
        async def there() -> bool:
            return await self.ready("app:done") == count

        await eventually(there, f"{count} messages to be handled", timeout=60)


@pytest.fixture(name="server", params=["rabbitmq310", "rabbitmq43"])
def _server(request: pytest.FixtureRequest) -> Broker:
    if request.param == "rabbitmq43":
        found: Broker = request.getfixturevalue("fleet")[request.param]
        return found
    oldest: Broker = request.getfixturevalue("rabbitmq")
    return oldest


@pytest.fixture(name="stage")
async def _stage(server: Broker, tmp_path: Path) -> AsyncIterator[Stage]:
    vhost = server.new_vhost()
    stage = Stage(server, vhost, tmp_path)
    await stage.admin.connect()
    for queue in stage.document.queues.values():
        await stage.admin.declare(topology_of(queue))
    await stage.admin.declare(Topology(exchanges=(ExchangeDecl(FOREIGN, "direct"),)))
    await stage.make_user()
    await stage.runner.start()
    running = asyncio.create_task(stage.runner.run())

    async def ready() -> bool:
        return stage.runner.ready

    await eventually(ready, "the runner to consume", timeout=60)
    yield stage
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await stage.runner.drain()
    await stage.admin.close()
    server.api("DELETE", f"/users/{stage.user}")
    server.delete_vhost(vhost)


def publish(exchange: str, key: str = "") -> Any:
    async def attack(channel: Any) -> None:
        await channel.basic_publish(b"1", exchange=exchange, routing_key=key)
        await channel.basic_qos(prefetch_count=1)  # a round trip, in which the refusal comes

    return attack


def call(method: str, *args: Any, **kwargs: Any) -> Any:
    async def attack(channel: Any) -> None:
        await getattr(channel, method)(*args, **kwargs)

    return attack


ATTACKS = {
    "publish": {
        "to another queue's exchange": publish(OTHER),
        "to the own queue's exchange, which the policy does not name": publish("app:todo.x"),
        "through the default exchange to another queue": publish("", "app:other"),
        "through the default exchange to the own queue": publish("", "app:todo"),
        "to a built-in exchange": publish("amq.topic", "#"),
        "to the built-in fanout exchange": publish("amq.fanout"),
        "to another application's exchange": publish(FOREIGN, "x"),
        "to another queue's retry exchange": publish("app:other.retry", "dead"),
        "to a retry exchange of a queue that it may publish to": publish("app:done.retry", "1000"),
        "to an exchange whose name differs by a dot": publish("app:doneax"),
        "to an exchange named with a line end": publish("app:other.x\n"),
    },
    "bind": {
        "the own queue to another's exchange": call("queue_bind", "app:todo", OTHER),
        "the own queue to another application's exchange": call("queue_bind", "app:todo", FOREIGN),
        "the own queue to an exchange that it may publish to": call("queue_bind", "app:todo", ALLOWED),
        "another queue to an exchange that it may publish to": call("queue_bind", "app:other", ALLOWED),
        "an exchange that it may publish to behind another's": call("exchange_bind", ALLOWED, OTHER),
        "an exchange that it may publish to behind amq.topic": call("exchange_bind", ALLOWED, "amq.topic"),
        "the own retry exchange behind an application's": call("exchange_bind", "app:todo.retry", FOREIGN),
        "the own retry exchange behind the own": call("exchange_bind", "app:todo.retry", "app:todo.x"),
        "another's exchange behind one that it may publish to": call("exchange_bind", OTHER, ALLOWED),
    },
    "unbind": {
        "the own queue": call("queue_unbind", "app:todo", "app:todo.x"),
        "another queue": call("queue_unbind", "app:other", OTHER),
        "the queue that it publishes to": call("queue_unbind", "app:done", ALLOWED),
        "the own dead letters": call("queue_unbind", "app:todo.dead", "app:todo.retry", "dead"),
        "an exchange": call("exchange_unbind", ALLOWED, OTHER),
    },
    "declare": {
        "a queue": call("queue_declare", "evil"),
        "a queue in its namespace": call("queue_declare", "app:evil"),
        "a queue of its own for replies": call("queue_declare", "", exclusive=True),
        "a queue that dead-letters elsewhere": call(
            "queue_declare", "evil", arguments={"x-dead-letter-exchange": OTHER}
        ),
        "a queue whose name is a line end": call("queue_declare", "\n"),
        "the own queue again": call("queue_declare", "app:todo", durable=True),
        "an exchange": call("exchange_declare", "evil"),
        "an exchange that a pattern could match": call("exchange_declare", "app:evil.x"),
        "an exchange of a queue's name": call("exchange_declare", "app:todo", exchange_type="fanout"),
        "an exchange with an alternate": call(
            "exchange_declare", "evil", arguments={"alternate-exchange": OTHER}
        ),
    },
    "delete": {
        "the own queue": call("queue_delete", "app:todo"),
        "another queue": call("queue_delete", "app:other"),
        "the own dead letter queue": call("queue_delete", "app:todo.dead"),
        "an exchange that it may publish to": call("exchange_delete", ALLOWED),
        "the own retry exchange": call("exchange_delete", "app:todo.retry"),
        "another application's exchange": call("exchange_delete", FOREIGN),
    },
    "read": {
        "get from another queue": call("basic_get", "app:other"),
        "get from a queue that it may publish to": call("basic_get", "app:done"),
        "get from the own dead letters": call("basic_get", "app:todo.dead"),
        "get from the own retries": call("basic_get", "app:todo.retry.1000"),
        "consume from another queue": call("basic_consume", "app:other", lambda _: None),
        "purge another queue": call("queue_purge", "app:other"),
        "purge a queue that it may publish to": call("queue_purge", "app:done"),
        "purge the own dead letters": call("queue_purge", "app:todo.dead"),
    },
}  # fmt: skip


async def is_refused(attack: Any, channel: Any) -> bool:
    try:
        await attack(channel)
    except ChannelAccessRefused:
        return True
    return False


@pytest.mark.parametrize("kind", ATTACKS)
async def test_an_attack_with_a_consumers_credentials_is_refused_while_the_consumer_works_on(
    stage: Stage, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for domain in ("exchange-name", "queue-name"):  # an attacker's library would not object to a name
        monkeypatch.setitem(constants.DOMAIN_REGEX, domain, re.compile(r"(?s).*"))
    await stage.publish(1)
    await stage.wait_done(1)
    before = await _picture(stage)
    for what, attack in ATTACKS[kind].items():
        async with stage.channel() as channel:
            assert await is_refused(attack, channel), what
    assert await _picture(stage) == before
    await stage.publish(2)
    await stage.wait_done(2)
    assert stage.runner.ready


async def _picture(stage: Stage) -> Any:
    """Everything on the virtual host that an attack could have changed."""

    def read() -> Any:
        bindings = stage.rabbitmq.api("GET", f"/bindings/{stage.vhost}")
        kinds = {
            kind: sorted(one["name"] for one in stage.rabbitmq.api("GET", f"/{kind}/{stage.vhost}"))
            for kind in ("queues", "exchanges")
        }
        return kinds | {
            "bindings": sorted((one["source"], one["destination"], one["routing_key"]) for one in bindings)
        }

    picture = await asyncio.to_thread(read)
    counts = {
        name: await stage.ready(name) for name in ("app:other", "app:todo.dead", "app:done", "app:other.dead")
    }
    return picture | {"counts": counts}


async def test_other_virtual_hosts_are_closed_to_a_consumers_credentials(stage: Stage) -> None:
    second = stage.rabbitmq.new_vhost()
    try:
        for vhost in ("/", second):
            with pytest.raises(aiormq.exceptions.AMQPError):
                await stage.connect(vhost)
    finally:
        stage.rabbitmq.delete_vhost(second)
    await (await stage.connect()).close()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/whoami"),
        ("GET", "/overview"),
        ("GET", "/users"),
        ("GET", "/queues"),
        ("GET", "/definitions"),
        ("PUT", "/users/evil"),
        ("PUT", "/permissions/{vhost}/{user}"),
        ("POST", "/exchanges/{vhost}/amq.default/publish"),
        ("GET", "/aliveness-test/{vhost}"),
    ],
)
def test_the_management_api_is_closed_to_a_consumers_credentials(rabbitmq, vhost, method, path):
    user = broker_users.slots(broker_users.Place(vhost, "app", "main"), "app", "worker").a
    rabbitmq.api("PUT", f"/users/{user}", {"password": PASSWORD, "tags": broker_users.TAG})
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    rabbitmq.api("PUT", f"/permissions/{vhost}/{user}", everything)
    try:
        base = urlsplit(rabbitmq.management_uri)
        connection = http.client.HTTPConnection(base.hostname, base.port, timeout=30)
        credentials = base64.b64encode(f"{user}:{PASSWORD}".encode()).decode()
        connection.request(
            method,
            f"/api{path.format(vhost=vhost, user=user)}",
            "{}",
            {"Authorization": f"Basic {credentials}"},
        )
        assert connection.getresponse().status in (401, 403)
        connection.close()
    finally:
        rabbitmq.api("DELETE", f"/users/{user}")


# What remains possible by design, as docs/security.md lists it.


async def test_the_own_queue_can_be_read_emptied_and_dead_lettered(stage: Stage) -> None:
    await stage.runner.drain()
    for number in range(4):
        await stage.publish(number)
    async with stage.channel() as channel:
        message = await channel.basic_get("app:todo", no_ack=True)
        assert message.body == b"0"
        purged = await channel.queue_purge("app:todo")
        assert purged.message_count == 3
        await channel.basic_publish(b"forged", exchange="app:todo.retry", routing_key="dead")
        await channel.basic_publish(b"forged", exchange="app:done.x")
        await channel.basic_publish(
            b"forged", exchange="app:done.x", properties=Basic.Properties(headers={"CC": ["app:other"]})
        )
        await channel.basic_qos(prefetch_count=1)

    async def arrived() -> bool:
        return await stage.ready("app:todo.dead") == 1 and await stage.ready("app:done") == 2

    await eventually(arrived, "the forged messages to arrive")
    assert await stage.ready("app:other") == 0  # CC adds keys within the exchange only


async def test_on_this_rabbitmq_a_passive_declare_tells_of_a_foreign_queue(stage: Stage) -> None:
    async with stage.channel() as channel:
        if stage.admin.server.version.startswith("3."):
            assert (await channel.queue_declare("app:other", passive=True)).message_count == 0
        else:
            with pytest.raises(ChannelAccessRefused):
                await channel.queue_declare("app:other", passive=True)
