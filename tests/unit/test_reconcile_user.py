"""A Consumer's broker user comes about, however often the operator dies on the way.

The real reconciler, on a broker and a Secret that are remembered here, with a crash after any call.
"""

import base64
import dataclasses
import itertools
from datetime import UTC, datetime, timedelta

import pytest

from lunaq_operator import broker_users, kinds, names
from lunaq_operator.broker_users import Account, Place, Texts
from lunaq_operator.management import ManagementError
from lunaq_operator.reconcile import orphans, user
from lunaq_operator.reconcile.context import Context, NotReady
from lunaq_operator.reconcile.managements import Managements, ManagementTarget
from lunaq_operator.reconcile.pool import Pool, Target
from lunaq_operator.references import add_indexes
from lunaq_operator.resources import parse_broker, parse_consumer, parse_queue
from lunaq_operator.settings import Settings
from lunaq_operator.store import Key, Store
from lunaq_runtime.policy import Policy

KEY = Key("app", "worker")
BROKER = Key("app", "main")
PLACE = Place("cluster", "app", "main")
SLOTS = broker_users.slots(PLACE, *KEY)
READY = {"conditions": [{"type": "Ready", "status": "True"}]}
POLICY = Policy(publish=True, publish_to=("app:sent",), consume=("app:emails",))
NARROWER = Policy(consume=("app:emails",))


class Crash(BaseException):
    """The operator dies: nothing of it goes on."""


class World:
    """What outlives the operator: the broker's users, and the Secret."""

    def __init__(self) -> None:
        self.accounts = {}
        self.open = []  # the permissions under which each connection was opened, by user
        self.secret = None
        self.calls = 0
        self.writes = []
        self.crash_at = None
        self.down = False
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def did(self, what) -> None:
        self.writes.append(what)
        if len(self.writes) == self.crash_at:
            raise Crash

    def connect(self) -> None:
        """A pod connects with what the Secret says, as its rights are now."""
        name = base64.b64decode(self.secret["data"]["username"]).decode()
        password = base64.b64decode(self.secret["data"]["password"]).decode()
        assert broker_users.password_matches(password, self.accounts[name]), "the pod is refused"
        self.open.append((name, self.accounts[name].permissions["v"].write))


class FakeManagement:
    def __init__(self, world) -> None:
        self.world = world

    async def knows(self, vhost):
        return vhost == "v"

    async def accounts(self, prefix):
        if self.world.down:
            raise ManagementError("down")
        return {name: one for name, one in self.world.accounts.items() if name.startswith(prefix)}

    async def put_user(self, name, password_hash):
        if self.world.down:
            raise ManagementError("down")
        old = self.world.accounts.get(name)
        self.world.accounts[name] = Account(
            frozenset({"lunaq"}), password_hash, broker_users.HASHING, old.permissions if old else {}
        )
        self.world.did(f"put {name[-1]}")

    async def delete_user(self, name):
        self.world.accounts.pop(name, None)
        self.world.open = [one for one in self.world.open if one[0] != name]
        self.world.did(f"delete {name[-1]}")

    async def grant(self, vhost, name, texts):
        account = self.world.accounts[name]
        permissions = {**account.permissions, vhost: texts}
        self.world.accounts[name] = dataclasses.replace(account, permissions=permissions)
        self.world.did(f"grant {name[-1]}")

    async def revoke(self, vhost, name):
        account = self.world.accounts[name]
        kept = {one: texts for one, texts in account.permissions.items() if one != vhost}
        self.world.accounts[name] = dataclasses.replace(account, permissions=kept)
        self.world.did(f"revoke {name[-1]}")

    async def connections(self, name):
        return sum(one == name for one, _ in self.world.open)

    async def close_connections(self, name):
        self.world.open = [one for one in self.world.open if one[0] != name]
        self.world.did(f"close {name[-1]}")

    async def close(self):
        pass


class FakeKube:
    def __init__(self, world) -> None:
        self.world = world
        self.pods_told = []

    async def get(self, kind, namespace, name):
        assert (kind, namespace, name) == (kinds.SECRETS, "app", "worker.broker")
        return self.world.secret

    async def create(self, kind, obj):
        assert kind is kinds.SECRETS
        self._write(obj)
        return self.world.secret

    async def patch(self, kind, obj, changes):
        assert kind is kinds.SECRETS
        assert changes["metadata"]["resourceVersion"] == obj["metadata"]["resourceVersion"]
        self._write({**obj, **changes})
        return self.world.secret

    async def list(self, *asked):
        self.pods_told.append(asked)
        return []

    def _write(self, obj):
        metadata = {**obj["metadata"], "resourceVersion": str(len(self.world.writes))}
        self.world.secret = {**obj, "metadata": metadata}
        self.world.did("secret")


class FakeRecorder:
    async def event(self, *args, **kwargs):
        pass


def resource(kind, name, spec, **metadata):
    meta = {"name": name, "namespace": "app", "uid": f"uid-{name}", "resourceVersion": "1", **metadata}
    return {"apiVersion": "lunaq.dev/v1alpha1", "kind": kind, "metadata": meta, "spec": spec, "status": READY}


class Process:
    """One operator process over a world that outlives it."""

    def __init__(self, world, **settings) -> None:
        self.world = world
        store = Store(kinds.watched(cluster_wide=True))
        add_indexes(store)
        spec = {
            "uri": "amqp://rabbit/v",
            "credentialsSecretRef": {"name": "rabbit"},
            "management": {"uri": "http://rabbit:15672"},
        }
        self.broker = resource("Broker", "main", spec)
        self.queue = resource("Queue", "emails", {"brokerRef": {"name": "main"}})
        store[kinds.BROKERS].replace("", [self.broker], 5)
        store[kinds.QUEUES].replace("", [self.queue], 5)
        self.context = Context(
            store=store,
            kube=FakeKube(world),
            recorder=FakeRecorder(),
            pool=Pool(lambda _: None),
            managements=Managements(lambda _uri, _target: FakeManagement(world)),
            settings=Settings("image", cluster_id="cluster", **settings),
            enqueue=lambda *_: None,
            now=lambda: world.now,
        )

    def wanted(self, policy=POLICY, rotate=""):
        annotations = {names.ANNOTATION_ROTATE: rotate} if rotate else {}
        spec = {"queueRef": {"name": "emails"}, "handler": {"source": "return 1"}}
        obj = resource("Consumer", "worker", spec, annotations=annotations)
        return user.Wanted(
            obj, parse_consumer(obj), parse_queue(self.queue), self.queue, parse_broker(self.broker), policy
        )

    async def look(self):
        target = Target(uid="u", uri="amqp://rabbit/v", username="op", password="pw")
        made_from = ManagementTarget("http://rabbit:15672", "v", PLACE, target)
        users, _ = await self.context.managements.look(BROKER, made_from)
        return users

    async def run(self, policy=POLICY, rotate=""):
        """Do one pass, as the Broker's and then the Consumer's reconciler would."""
        await self.look()
        await user.widen(self.context, self.wanted(policy, rotate))
        return await user.provide(self.context, self.wanted(policy, rotate))


def texts(policy):
    return broker_users.grants(policy, "app:emails", "app:emails", retries=True, named={}).texts()


def assert_settled(world, policy):
    """One user, with the Secret's password and exactly the policy, and nobody connected under more."""
    (name,) = world.accounts
    assert base64.b64decode(world.secret["data"]["username"]).decode() == name
    password = base64.b64decode(world.secret["data"]["password"]).decode()
    assert broker_users.password_matches(password, world.accounts[name])
    assert world.accounts[name].permissions == {"v": texts(policy)}
    assert all(one == (name, texts(policy).write) for one in world.open)


async def settle(world, policy, rotate):
    """Run processes that no longer crash until a pass writes nothing."""
    process = Process(world)
    for _ in range(10):
        before = len(world.writes)
        await process.run(policy, rotate)
        if len(world.writes) == before and len(world.accounts) == 1:
            return
        # The pods change over, and time goes by.
        world.open = [one for one in world.open if one[0] == name_in(world)]
        world.now += timedelta(seconds=10)
    pytest.fail(f"does not settle: {world.writes[-8:]}")


def name_in(world):
    return base64.b64decode(world.secret["data"]["username"]).decode()


async def begun():
    """A world in which a Consumer has its user, and a pod is connected as that."""
    world = World()
    await Process(world).run()
    world.connect()
    world.now += timedelta(hours=1)
    world.writes.clear()
    return world


async def narrow(_, process):
    await process.run(NARROWER)


async def rotate(world, process):
    await process.run(rotate="now")
    world.open.clear()
    world.connect()
    world.now += timedelta(seconds=10)
    await process.run(rotate="now")


async def both(_, process):
    await process.run(NARROWER, rotate="now")


async def lose_secret(world, process):
    world.secret = None
    await process.run()


async def lose_user(world, process):
    world.accounts.clear()
    world.open.clear()
    await process.run()


CHANGES = {
    narrow: (NARROWER, ""),
    rotate: (POLICY, "now"),
    both: (NARROWER, "now"),
    lose_secret: (POLICY, ""),
    lose_user: (POLICY, ""),
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_an_operator_that_dies_after_any_write_leaves_what_its_successor_completes(change):
    policy, token = CHANGES[change]
    for crash_at in itertools.count(1):
        world = await begun()
        world.crash_at = crash_at
        try:
            await change(world, Process(world))
        except Crash:
            world.crash_at = None
            await settle(world, policy, token)
            assert_settled(world, policy)
        else:
            assert crash_at > 2, "the change makes no write that could be crashed after"
            break


async def test_a_first_pass_that_dies_after_any_write_is_completed():
    for crash_at in itertools.count(1):
        world = World()
        world.crash_at = crash_at
        try:
            await Process(world).run()
        except Crash:
            world.crash_at = None
            await settle(world, POLICY, "")
            assert_settled(world, POLICY)
        else:
            assert crash_at == 4  # user, permissions, Secret
            break


async def test_a_pass_that_finds_all_as_it_should_be_writes_nothing():
    world = await begun()
    for process in (Process(world), Process(world)):
        await process.run()
        await process.run()
    assert world.writes == []


async def test_pods_that_use_the_old_user_keep_it_until_they_changed_over():
    world = await begun()
    process = Process(world)
    await process.run(rotate="now")
    world.now += timedelta(seconds=60)
    await process.run(rotate="now")
    assert set(world.accounts) == set(SLOTS)
    assert world.open == [(SLOTS.a, texts(POLICY).write)]
    world.open.clear()
    world.connect()
    await process.run(rotate="now")
    assert set(world.accounts) == {SLOTS.b}
    assert world.open == [(SLOTS.b, texts(POLICY).write)]


async def test_who_holds_on_to_an_old_user_loses_it_at_the_deadline():
    world = await begun()
    process = Process(world, rotation_deadline=100)
    await process.run(rotate="now")
    world.now += timedelta(seconds=101)
    await process.run(rotate="now")
    assert set(world.accounts) == {SLOTS.b}
    assert world.open == []


async def test_rights_that_shrink_during_a_rotation_shrink_for_both_users():
    world = await begun()
    process = Process(world)
    await process.run(rotate="now")
    await process.run(NARROWER, rotate="now")
    assert {one.permissions["v"] for one in world.accounts.values()} == {texts(NARROWER)}
    assert world.open == []


async def test_a_password_becomes_too_old():
    world = await begun()
    process = Process(world, credentials_max_age=7200)
    found = await process.run()
    assert 0 < found.again <= 300
    world.now += timedelta(hours=1)
    await process.run()
    assert name_in(world) == SLOTS.b


@pytest.mark.parametrize(
    "broken", [{"username": "guest"}, {"password": "short"}, {"username": SLOTS.a + "x"}]
)
async def test_a_secret_that_somebody_edited_is_not_believed(broken):
    world = await begun()
    world.accounts["guest"] = Account(frozenset({"administrator"}), "", "", {})
    data = {key: base64.b64encode(value.encode()).decode() for key, value in broken.items()}
    world.secret["data"] |= data
    await Process(world).run()
    assert name_in(world) == SLOTS.b
    assert world.accounts["guest"].tags == {"administrator"}
    assert "guest" not in {name for name, _ in world.open}


async def test_a_secret_that_is_not_the_consumers_is_left_alone():
    world = World()
    world.secret = {"metadata": {"name": "worker.broker", "namespace": "app", "resourceVersion": "1"}}
    with pytest.raises(NotReady, match=r"Secret app/worker\.broker exists and is not this Consumer's"):
        await Process(world).run()
    assert world.writes == []


async def test_rights_that_somebody_widened_are_taken_back_and_what_used_them_is_closed():
    world = await begun()
    (account,) = world.accounts.values()
    everything = {"v": Texts(".*", ".*", ".*"), "other": Texts(".*", ".*", ".*")}
    world.accounts[SLOTS.a] = dataclasses.replace(
        account, permissions=everything, tags=frozenset({"lunaq", "administrator"})
    )
    await Process(world).run()
    assert_settled(world, POLICY)
    assert world.accounts[SLOTS.a].tags == {"lunaq"}
    assert world.open == []


async def test_pods_go_on_while_the_management_api_is_away():
    world = await begun()
    process = Process(world)
    await process.look()
    world.down = True
    world.accounts.clear()
    process.context.managements.get(BROKER).accounts.clear()
    found = await user.provide(process.context, process.wanted())
    assert found.username == SLOTS.a
    assert found.problem.reason == "ManagementUnreachable"


async def test_a_queue_that_was_never_ready_gives_no_user():
    world = World()
    process = Process(world)
    process.queue["status"] = {"conditions": [{"type": "Ready", "status": "False"}]}
    with pytest.raises(NotReady, match="Queue app:emails is not Ready"):
        await process.run()
    assert world.accounts == {}


async def test_only_this_brokers_users_are_ever_swept():
    world = await begun()
    other = Place("another cluster", "app", "main")
    foreign = broker_users.slots(other, "app", "worker").a
    for name in ("guest", foreign, PLACE.prefix + "person"):
        world.accounts[name] = Account(frozenset({"lunaq"}), "", "", {})
    process = Process(world)
    await orphans.sweep(process.context, BROKER, await process.look())
    assert set(world.accounts) == {"guest", foreign, PLACE.prefix + "person"}
    assert world.open == []


async def test_a_namespace_that_is_not_served_keeps_its_users():
    world = await begun()
    process = Process(world, namespaces=("other",))
    await orphans.sweep(process.context, BROKER, await process.look())
    assert set(world.accounts) == {SLOTS.a}
