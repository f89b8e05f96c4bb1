"""500 Consumers and 1,000 Queues in 20 namespaces: one change of RBAC touches those that it concerns.

Run by `make prove-scale`; not part of `make test`. Writes are counted where they arrive: at the API server
and at the broker's management API, through proxies that only the operator uses. Everything is real but the
pods, which stay pending for want of a kubelet.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from chart_rights import limited_cluster
from operators import App, Operator

from harness.recording import Asked, RecordingProxy
from harness.waiting import eventually
from lunaq_operator import kinds, kube, names
from lunaq_operator.rbac import Rbac

if TYPE_CHECKING:
    from lunaq_operator.kinds import Kind

NAMESPACES = int(os.environ.get("LUNAQ_PROOF_NAMESPACES", "20"))
QUEUES, CONSUMERS = 50, 25
READS = ("GET", "HEAD")
PATIENCE = 1800

pytestmark = [pytest.mark.timeout(2 * PATIENCE)]


def rbac(kind: str, name: str, namespace: str, **more: Any) -> tuple[Kind, dict[str, Any]]:
    metadata = {"name": name, "namespace": namespace}
    obj = {"apiVersion": kinds.ROLES.api_version, "kind": kind, "metadata": metadata, **more}
    return kinds.ROLES if kind == "Role" else kinds.ROLE_BINDINGS, obj


def binding(name: str, namespace: str, role: str, subject: dict[str, str]) -> tuple[Kind, dict[str, Any]]:
    ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role}
    return rbac("RoleBinding", name, namespace, roleRef=ref, subjects=[subject])


def ours(kind: Kind, name: str, namespace: str, spec: dict[str, Any]) -> tuple[Kind, dict[str, Any]]:
    metadata = {"name": name, "namespace": namespace}
    return kind, {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, "spec": spec}


def publishers(namespace: str) -> tuple[Kind, dict[str, Any]]:
    group = {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": "Group",
        "name": f"system:serviceaccounts:{namespace}",
    }
    return binding("publishers", namespace, "publish", group)


def in_a_namespace(namespace: str, broker: str) -> list[tuple[Kind, dict[str, Any]]]:
    def rule(*verbs: str, resources: tuple[str, ...] = ("queues",)) -> dict[str, Any]:
        return {"apiGroups": [names.GROUP], "resources": list(resources), "verbs": list(verbs)}

    made = [
        rbac("Role", "consume", namespace, rules=[rule("consume")]),
        rbac("Role", "publish", namespace, rules=[rule("publish", resources=("queues", "consumers"))]),
        publishers(namespace),
    ]
    reference = {"name": "main", "namespace": broker}
    for number in range(QUEUES):
        spec = {"brokerRef": reference, "retry": {"delays": ["1s"]}}
        made.append(ours(kinds.QUEUES, f"q{number}", namespace, spec))
    for number in range(CONSUMERS):
        name = f"c{number}"
        account = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
        handler = {"source": "return function() return true end"}
        made += [
            binding(name, namespace, "consume", account),
            ours(kinds.CONSUMERS, name, namespace, {"queueRef": {"name": f"q{number}"}, "handler": handler}),
        ]
    return made


class Counted:
    """What the operator wrote since the last look, at the API server and at the broker."""

    def __init__(self, api: RecordingProxy, broker: RecordingProxy) -> None:
        self._api, self._broker = api, broker
        self._seen = [0, 0]

    def _new(self) -> list[list[Asked]]:
        found = []
        for at, proxy in enumerate((self._api, self._broker)):
            asked = proxy.asked[self._seen[at] :]
            found.append([one for one in asked if one.method not in READS and "/leases/" not in one.path])
        return found

    def reset(self) -> None:
        self._seen = [len(self._api.asked), len(self._broker.asked)]

    async def settle(self, quiet: float = 5.0) -> list[list[Asked]]:
        """Wait until nothing was written for a while; return what was."""
        while True:
            before = self._new()
            await asyncio.sleep(quiet)
            if self._new() == before:
                return before


def told(label: str, writes: list[list[Asked]], begun: float, concerned: set[str]) -> None:
    """Print the writes of one change by kind, and see that they are about those concerned."""
    at_api, at_broker = writes
    by_kind = Counter("/".join(part for part in one.path.split("/")[-4:] if part in KNOWN) for one in at_api)
    by_call = Counter(f"{one.method} {one.path.split('/')[2]}" for one in at_broker)
    touched = {consumer for one in at_api if (consumer := consumer_of(one.path))}
    last = max((one.at for one in (*at_api, *at_broker)), default=begun)
    print(  # noqa: T201 - what the proof is for
        f"\n{label}: {len(touched)} Consumers touched; {len(at_api)} writes at the API server "
        f"{dict(by_kind)}; "
        f"{len(at_broker)} at the broker {dict(by_call)}; the last after {last - begun:.2f} s"
    )
    assert touched == concerned


KNOWN = {"configmaps", "consumers", "status", "pods", "events", "secrets", "deployments", "serviceaccounts"}


def consumer_of(path: str) -> str:
    """Name the Consumer that a written object belongs to, as namespace/name; an Event's path has no name."""
    namespace, resource, *name = path.split("/namespaces/")[1].split("/")
    return f"{namespace}/{name[0].split('.')[0].split('-')[0]}" if resource != "events" else ""


@pytest.fixture
def namespaces(apiserver):
    found = [apiserver.new_namespace() for _ in range(NAMESPACES)]
    yield found
    for name in found:
        apiserver.delete_namespace(name)


@pytest.fixture
async def client(apiserver):
    connected = kube.Kube(await kube.load(str(apiserver.kubeconfig)), timeout=120)
    yield connected
    await connected.close()


async def create_all(client: kube.Kube, objects: list[tuple[Kind, dict[str, Any]]]) -> None:
    limit = asyncio.Semaphore(24)

    async def one(kind: Kind, obj: dict[str, Any]) -> None:
        async with limit:
            assert await client.create(kind, obj) is not None

    await asyncio.gather(*(one(kind, obj) for kind, obj in objects))


def is_so(obj: dict[str, Any], type_: str, status: str) -> bool:
    found = (obj.get("status") or {}).get("conditions") or []
    return any((one["type"], one["status"]) == (type_, status) for one in found)


@pytest.mark.usefixtures("crds")
async def test_a_change_touches_only_whom_it_concerns(
    apiserver,
    namespace,
    namespaces,
    client,
    rabbitmq,
    vhost,
    tmp_path,
):
    management = RecordingProxy(rabbitmq.management_uri).start()
    try:
        with limited_cluster(apiserver, namespace, tmp_path, single=False) as limited:
            app = App(apiserver, namespace, rabbitmq, vhost)
            app.secret()
            app.broker(management={"uri": management.url}, allowedNamespaces={"from": "All"})
            slow = {"broker_recheck": 15.0, "queue_recheck": 30.0, "topology_recheck": 300.0}
            calm = {"source_recheck": 30.0, "withdrawal_grace": 300.0, "denials_recheck": 15.0}
            operator = Operator(limited, tmp_path, **limited.settings, **slow, **calm)
            operator.start().wait_working()
            try:
                begun = time.monotonic()
                await create_all(
                    client, [one for name in namespaces for one in in_a_namespace(name, namespace)]
                )
                await all_settled(client)
                print(f"\nset up in {time.monotonic() - begun:.0f} s")  # noqa: T201 - what the proof is for
                await evaluated(client)
                await changes(client, namespaces, Counted(limited.proxy, management))
            finally:
                operator.stop()
    finally:
        management.stop()


async def all_settled(client: kube.Kube) -> None:
    async def queues() -> bool:
        return all(is_so(obj, "Ready", "True") for obj in await client.list(kinds.QUEUES))

    async def consumers() -> bool:
        found = await client.list(kinds.CONSUMERS)
        return all(is_so(obj, "Authorized", "True") and obj["status"].get("brokerUser") for obj in found)

    await eventually(queues, "all Queues to be ready", PATIENCE)
    await eventually(consumers, "all Consumers to have their rights", PATIENCE)


async def evaluated(client: kube.Kube) -> None:
    """Time the evaluation of all Consumers, from plain objects."""
    order = (kinds.ROLES, kinds.ROLE_BINDINGS, kinds.CLUSTER_ROLES, kinds.CLUSTER_ROLE_BINDINGS)
    objects = [await client.list(kind) for kind in order]
    consumers = [obj["metadata"] for obj in await client.list(kinds.CONSUMERS)]
    begun = time.monotonic()
    index = Rbac.build(*objects)
    found = [index.derive(one["namespace"], one["name"], one["name"]) for one in consumers]
    seconds = time.monotonic() - begun
    counts = ", ".join(f"{len(some)} {kind.plural}" for kind, some in zip(order, objects, strict=True))
    print(f"\n{len(found)} Consumers evaluated in {seconds * 1000:.0f} ms, from {counts}")  # noqa: T201 - as above
    assert len(found) == NAMESPACES * CONSUMERS
    assert all(one.policy.consume and one.policy.publish for one in found)
    assert seconds < 1


async def changes(client: kube.Kube, namespaces: list[str], counted: Counted) -> None:
    where = namespaces[-1]
    await counted.settle(20.0)
    everybody = {f"{where}/c{number}" for number in range(CONSUMERS)}

    async def change(label: str, concerned: set[str], work: Any) -> None:
        counted.reset()
        begun = time.monotonic()
        await work
        told(label, await counted.settle(), begun, concerned)

    async def delete(name: str) -> None:
        found = await client.get(kinds.ROLE_BINDINGS, where, name)
        await client.delete(kinds.ROLE_BINDINGS, found)

    account = {"kind": "ServiceAccount", "name": "c0", "namespace": where}
    mine = binding("c0", where, "consume", account)
    stranger = binding("stranger", where, "consume", account | {"name": "stranger"})
    await change("one RoleBinding of one account deleted", {f"{where}/c0"}, delete("c0"))
    await change("it is back", {f"{where}/c0"}, client.create(*mine))
    await change("a RoleBinding of a whole namespace deleted", everybody, delete("publishers"))
    await change("it is back", everybody, client.create(*publishers(where)))
    await change("a RoleBinding of somebody else made", set(), client.create(*stranger))
