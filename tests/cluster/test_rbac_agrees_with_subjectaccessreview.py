"""Our evaluation of RBAC and the API server's give the same answers, in random worlds full of traps.

What is evaluated is what the cluster holds, read back: the roles of a world and every other that is there.
A world is asked about only once the API server's authorizer has seen all of it, and gone before the next.
"""

import asyncio
import contextlib
import random
from collections import Counter
from typing import Any

import aiohttp
import pytest

from harness.waiting import eventually
from lunaq_operator import kinds, kube, names
from lunaq_operator.kinds import Kind
from lunaq_operator.rbac import Rbac
from lunaq_runtime.policy import CONSUME, PUBLISH, PUBLISH_TO

RBAC_API = "rbac.authorization.k8s.io"
WORLDS, BLOCKS = 50, 5
ROLES, BINDINGS = 10, 24
ACCOUNTS = ("worker", "other")
QUEUES = ("emails", "sent", "jobs", "unnamed")
CONSUMERS = ("worker", "mailer", "unnamed")

NAMESPACES = Kind("", "v1", "namespaces", "Namespace", namespaced=False)
REVIEWS = Kind("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", namespaced=False)
RBAC_KINDS = {kind.kind: kind for kind in kinds.RBAC}

VERBS = ["publish", "consume", "consume", "publish", "get", "*", "Publish", "publish/consume", "use", "*/*"]
GROUPS = ["lunaq.dev"] * 12 + ["*", "", "apps", "lunaq.dev/v1alpha1", "*.dev", "LUNAQ.dev", "*/*"]
RESOURCES = ["queues"] * 9 + ["consumers"] * 5
RESOURCES += [
    "*",
    "*/*",
    "queues/*",
    "queues/status",
    "*/status",
    "brokers",
    "Queues",
    "queue",
    "",
    "*/queues",
]
RESOURCE_NAMES = [
    "emails",
    "sent",
    "jobs",
    "emails",
    "worker",
    "mailer",
    "worker",
    "*",
    "em*",
    "",
    "emails.x",
    "app:emails",
    "Emails",
    "*/*",
]


def some(rng: random.Random, pool: list[str], most: int = 2) -> list[str]:
    return [rng.choice(pool) for _ in range(rng.randint(1, most))]


def rule(rng: random.Random) -> dict[str, Any]:
    one = {
        "verbs": some(rng, VERBS),
        "apiGroups": some(rng, GROUPS),
        "resources": some(rng, RESOURCES),
    }
    if rng.random() < 0.75:
        one["resourceNames"] = some(rng, RESOURCE_NAMES)
    elif rng.random() < 0.5:
        one["resourceNames"] = []
    return one


def rules(rng: random.Random, *, cluster: bool) -> list[dict[str, Any]]:
    made = [rule(rng) for _ in range(rng.randint(0, 4))]
    if cluster and rng.random() < 0.3:
        made.append({"verbs": ["*"], "nonResourceURLs": ["*"]})
    return made


def subject(rng: random.Random, namespaces: list[str]) -> dict[str, Any]:
    account, namespace = rng.choice(ACCOUNTS), rng.choice(namespaces)
    user = {"kind": "User", "apiGroup": RBAC_API}
    group = {"kind": "Group", "apiGroup": RBAC_API}
    return rng.choice(
        [
            {"kind": "ServiceAccount", "name": account, "namespace": namespace},
            {"kind": "ServiceAccount", "name": account, "namespace": namespace},
            {"kind": "ServiceAccount", "name": "nobody", "namespace": namespace},
            {"kind": "ServiceAccount", "name": account, "namespace": "elsewhere"},
            user | {"name": names.service_account_user(namespace, account)},
            {"kind": "User", "name": names.service_account_user(namespace, account)},
            user | {"name": account},
            user | {"name": "*"},
            user | {"name": "system:serviceaccounts"},
            group | {"name": f"system:serviceaccounts:{namespace}"},
            {"kind": "Group", "name": f"system:serviceaccounts:{namespace}"},
            group | {"name": rng.choice(["system:unauthenticated", "system:masters", "*", account])},
            group | {"name": names.service_account_user(namespace, account)},
        ]
    )


class World:
    """The roles and bindings of one seed, made in a cluster and removed again."""

    def __init__(self, client: kube.Kube, seed: int, prefix: str, namespaces: list[str]) -> None:
        self._client = client
        self._rng = random.Random(seed)  # noqa: S311 - the same world for a seed is the point
        self._seed = seed
        self._prefix = f"{prefix}-{seed}"
        self.namespaces = namespaces
        self._made: list[tuple[Kind, dict[str, Any]]] = []
        self._last: list[tuple[Kind, dict[str, Any]]] = []

    def _object(self, kind: str, name: str, namespace: str | None, **more: Any) -> dict[str, Any]:
        metadata = {"name": f"{self._prefix}-{name}"} | ({"namespace": namespace} if namespace else {})
        return {"apiVersion": f"{RBAC_API}/v1", "kind": kind, "metadata": metadata, **more}

    def _roles(self) -> list[dict[str, Any]]:
        made = []
        for number in range(ROLES):
            namespace = self._rng.choice(self.namespaces)
            made += [
                self._object("Role", f"r{number}", namespace, rules=rules(self._rng, cluster=False)),
                self._object("ClusterRole", f"r{number}", None, rules=rules(self._rng, cluster=True)),
            ]
        part = self._object("ClusterRole", "part", None, rules=[rule(self._rng), WHOLE])
        part["metadata"]["labels"] = {"lq-part-of": self._prefix}
        selectors = [{"matchLabels": {"lq-part-of": self._prefix}}]
        aggregation = {"clusterRoleSelectors": selectors}
        # The last of ROLES + 1: what refers to it gets what the controller summed up.
        total = self._object(
            "ClusterRole", f"r{ROLES}", None, aggregationRule=aggregation, rules=[rule(self._rng)]
        )
        return [*made, part, total]

    def _bindings(self) -> list[dict[str, Any]]:
        made = []
        for number in range(BINDINGS):
            namespace = self._rng.choice(self.namespaces)
            for kind, where in (("RoleBinding", namespace), ("ClusterRoleBinding", None)):
                if where is None and self._rng.random() < 0.85:
                    continue  # they grant everywhere, and few of them would hide all else
                ref = self._rng.choice(["Role", "ClusterRole"]) if where else "ClusterRole"
                # One of these does not exist.
                name = f"{self._prefix}-r{self._rng.randint(0, ROLES + 1)}"
                subjects = [subject(self._rng, self.namespaces) for _ in range(self._rng.randint(0, 3))]
                reference = {"apiGroup": RBAC_API, "kind": ref, "name": name}
                made.append(self._object(kind, f"b{number}", where, roleRef=reference, subjects=subjects))
        if self._seed % 4 == 0:
            everyone = self._rng.choice(["system:authenticated", "system:serviceaccounts"])
            kind, where = (
                ("RoleBinding", self.namespaces[0]) if self._seed % 8 else ("ClusterRoleBinding", None)
            )
            reference = {"apiGroup": RBAC_API, "kind": "ClusterRole", "name": f"{self._prefix}-r{ROLES}"}
            group = {"kind": "Group", "apiGroup": RBAC_API, "name": everyone}
            made.append(self._object(kind, "everyone", where, roleRef=reference, subjects=[group]))
        return made

    async def _create(self, objects: list[dict[str, Any]]) -> list[tuple[Kind, dict[str, Any]]]:
        wanted = [RBAC_KINDS[obj["kind"]] for obj in objects]
        created = await asyncio.gather(
            *(self._client.create(kind, obj) for kind, obj in zip(wanted, objects, strict=True))
        )
        made = list(zip(wanted, created, strict=True))
        self._made += made
        return made

    async def make(self) -> None:
        """Create it all, and a sentinel of each kind last; return when the sentinels answer.

        The authorizer sees the objects of a kind in the order of their creation.
        """
        await self._create([*self._roles(), *self._bindings()])
        total = f"{self._prefix}-r{ROLES}"

        async def summed() -> bool:
            found = await self._client.get(kinds.CLUSTER_ROLES, "", total)
            return bool(found and WHOLE in (found.get("rules") or ()))

        await eventually(summed, "the controller to sum up the aggregated role")
        granted = [{"verbs": ["watch"], "apiGroups": ["lunaq.dev"], "resources": ["brokers"]}]
        for scope in ("", "Cluster"):
            where = None if scope else self.namespaces[0]
            reference = {"apiGroup": RBAC_API, "kind": f"{scope}Role", "name": f"{self._prefix}-zz"}
            user = {"kind": "User", "apiGroup": RBAC_API, "name": f"{self._prefix}-{scope}"}
            role = self._object(f"{scope}Role", "zz", where, rules=granted)
            binding = self._object(f"{scope}RoleBinding", "zz", where, roleRef=reference, subjects=[user])
            self._last += (await self._create([role, binding]))[1:]
        await eventually(self._sentinels, "the API server to see all roles and bindings")

    async def _sentinels(self) -> bool:
        return all(await self._seen())

    async def _seen(self) -> list[bool]:
        place = {"verb": "watch", "resource": "brokers", "namespace": self.namespaces[0]}
        return await ask(
            self._client, [question(f"{self._prefix}-{scope}", (), **place) for scope in ("", "Cluster")]
        )

    async def remove(self) -> None:
        """Delete it all, the sentinels' bindings last; return when those do not answer any more."""
        last = [obj["metadata"]["uid"] for _, obj in self._last]
        first = [(kind, obj) for kind, obj in self._made if obj["metadata"]["uid"] not in last]
        bindings = [one for one in first if one[0] in (kinds.ROLE_BINDINGS, kinds.CLUSTER_ROLE_BINDINGS)]
        for batch in (bindings, self._last):
            await asyncio.gather(*(self._client.delete(kind, obj) for kind, obj in batch))

        async def silent() -> bool:
            return not any(await self._seen())

        await eventually(silent, "the API server to see that all bindings are gone")
        roles = [one for one in first if one not in bindings]
        await asyncio.gather(*(self._client.delete(kind, obj) for kind, obj in roles))


WHOLE = {"verbs": ["publish"], "apiGroups": ["lunaq.dev"], "resources": ["queues", "consumers"]}


def question(user: str, groups: tuple[str, ...], **attributes: str) -> dict[str, Any]:
    return {
        "apiVersion": REVIEWS.api_version,
        "kind": REVIEWS.kind,
        "spec": {
            "user": user,
            "groups": list(groups),
            "resourceAttributes": {"group": "lunaq.dev", "version": "v1alpha1", **attributes},
        },
    }


async def ask(client: kube.Kube, questions: list[dict[str, Any]]) -> list[bool]:
    """Ask the API server, 32 at a time; the answers are in the order of the questions.

    Not through the official client, which spends more time on a question than the API server does.
    """
    connector = aiohttp.TCPConnector(limit=32, ssl=client.ssl_context())
    async with aiohttp.ClientSession(
        client.server, headers=await client.auth_headers(), connector=connector
    ) as session:

        async def one(review: dict[str, Any]) -> bool:
            async with session.post(REVIEWS.path(), json=review) as response:
                answer = await response.json()
                return bool(answer["status"]["allowed"])

        return await asyncio.gather(*map(one, questions))


async def everything(client: kube.Kube) -> Rbac:
    order = (kinds.ROLES, kinds.ROLE_BINDINGS, kinds.CLUSTER_ROLES, kinds.CLUSTER_ROLE_BINDINGS)
    return Rbac.build(*[await client.list(kind) for kind in order])


Asked = tuple[dict[str, Any], bool]


def asked_about(rbac: Rbac, namespace: str, account: str, where: list[str]) -> list[Asked]:
    """List questions about the Consumers of one account, each with our answer."""
    user = names.service_account_user(namespace, account)
    groups = names.service_account_groups(namespace)
    found: list[Asked] = []
    for consumer in CONSUMERS:
        policy = rbac.derive(namespace, consumer, account).policy
        place = {"resource": "consumers", "namespace": namespace, "name": consumer}
        found.append((question(user, groups, verb="publish", **place), policy.allows(PUBLISH)))
    for queue_namespace in where:
        for queue in QUEUES:
            place = {"resource": "queues", "namespace": queue_namespace, "name": queue}
            queue_id = f"{queue_namespace}:{queue}"
            for verb, action in (("publish", PUBLISH_TO), ("consume", CONSUME)):
                found.append((question(user, groups, verb=verb, **place), policy.allows(action, queue_id)))
    return found


@pytest.fixture
async def client(apiserver, crds):  # noqa: ARG001 - the API server must know the kinds
    connected = kube.Kube(await kube.load(str(apiserver.kubeconfig)))
    yield connected
    await connected.close()


@pytest.fixture
def namespaces(apiserver, namespace):
    second = apiserver.new_namespace()
    yield [namespace, second]
    apiserver.delete_namespace(second)


@contextlib.asynccontextmanager
async def world(client: kube.Kube, seed: int, namespaces: list[str]):
    made = World(client, seed, namespaces[0], namespaces)
    try:
        await made.make()
        yield made
    finally:
        await made.remove()


@pytest.mark.parametrize("block", range(BLOCKS))
async def test_our_answers_are_the_api_servers(client, namespaces, block):
    answers: Counter[bool] = Counter()
    for seed in range(block, WORLDS, BLOCKS):
        async with world(client, seed, namespaces):
            rbac = await everything(client)
            asked = [
                one
                for namespace in namespaces
                for account in (*ACCOUNTS, "nobody")
                for one in asked_about(rbac, namespace, account, [*namespaces, "elsewhere"])
            ]
            assert len(asked) >= 100
            theirs = await ask(client, [one for one, _ in asked])
        different = [
            (one["spec"]["user"], one["spec"]["resourceAttributes"], f"ours {ours}, theirs {answer}")
            for (one, ours), answer in zip(asked, theirs, strict=True)
            if ours != answer
        ]
        assert different == [], f"in world {seed}"
        answers.update(theirs)
    # Worlds in which all answers are the same would prove little.
    assert min(answers[True], answers[False]) >= sum(answers.values()) / 10, answers
