"""Our evaluation of RBAC and the API server's give the same answers, on random roles full of traps.

What is evaluated is what the cluster holds, read back: the roles of a seed and every other that is there.
"""

import json
import random
from collections import Counter
from typing import Any

import pytest

from harness.kubernetes import Cluster
from harness.waiting import wait_for
from lunaq_operator import names
from lunaq_operator.rbac import Rbac
from lunaq_runtime.policy import CONSUME, PUBLISH, PUBLISH_TO, Policy

RBAC_API = "rbac.authorization.k8s.io"
SEEDS = (1, 2, 3, 4, 5, 6)
ROLES, BINDINGS = 10, 24
ACCOUNTS = ("worker", "other")
QUEUES = ("emails", "sent", "jobs")
CONSUMERS = ("worker", "mailer")

VERBS = ["publish", "consume", "consume", "publish", "get", "*", "Publish", "publish/consume", "use"]
GROUPS = ["lunaq.dev"] * 12 + ["*", "", "apps", "lunaq.dev/v1alpha1", "*.dev", "LUNAQ.dev"]
RESOURCES = ["queues"] * 9 + ["consumers"] * 5
RESOURCES += ["*", "*/*", "queues/*", "queues/status", "*/status", "brokers", "Queues", "queue", ""]
RESOURCE_NAMES = [
    *QUEUES,
    *QUEUES,
    *CONSUMERS,
    *CONSUMERS,
    "*",
    "em*",
    "",
    "emails.x",
    "app:emails",
    "Emails",
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
            user | {"name": names.service_account_user(namespace, account)},
            user | {"name": account},
            user | {"name": "*"},
            user | {"name": "system:serviceaccounts"},
            group | {"name": f"system:serviceaccounts:{namespace}"},
            group | {"name": rng.choice(["system:unauthenticated", "system:masters", "*", account])},
            group | {"name": names.service_account_user(namespace, account)},
        ]
    )


def scene(seed: int, prefix: str, namespaces: list[str]) -> list[dict[str, Any]]:
    """Make the roles and bindings of one seed."""
    rng = random.Random(seed)  # noqa: S311 - the same scene for a seed is the point
    objects: list[dict[str, Any]] = []

    def add(kind: str, name: str, namespace: str | None, **more: Any) -> None:
        metadata = {"name": f"{prefix}-{name}"} | ({"namespace": namespace} if namespace else {})
        objects.append({"apiVersion": f"{RBAC_API}/v1", "kind": kind, "metadata": metadata, **more})

    for number in range(ROLES):
        add("Role", f"r{number}", rng.choice(namespaces), rules=rules(rng, cluster=False))
        add("ClusterRole", f"r{number}", None, rules=rules(rng, cluster=True))
    for number in range(BINDINGS):
        namespace = rng.choice(namespaces)
        for kind, where in (("RoleBinding", namespace), ("ClusterRoleBinding", None)):
            if where is None and rng.random() < 0.75:
                continue  # they grant everywhere, and few of them would hide all else
            ref = rng.choice(["Role", "ClusterRole"]) if where else "ClusterRole"
            add(
                kind,
                f"b{number}",
                where,
                # The last but one of these does not exist.
                roleRef={"apiGroup": RBAC_API, "kind": ref, "name": f"{prefix}-r{rng.randint(0, ROLES)}"},
                subjects=[subject(rng, namespaces) for _ in range(rng.randint(0, 3))],
            )
    if seed % 3 == 0:
        everyone = rng.choice(["system:authenticated", "system:serviceaccounts"])
        add(
            "RoleBinding",
            "everyone",
            namespaces[0],
            roleRef={"apiGroup": RBAC_API, "kind": "ClusterRole", "name": f"{prefix}-sum"},
            subjects=[{"kind": "Group", "apiGroup": RBAC_API, "name": everyone}],
        )
    add(
        "ClusterRole",
        "sum",
        None,
        aggregationRule={"clusterRoleSelectors": [{"matchLabels": {"lq-part-of": prefix}}]},
        rules=[],
    )
    add(
        "ClusterRole",
        "part",
        None,
        rules=[{"verbs": ["publish"], "apiGroups": ["lunaq.dev"], "resources": ["queues", "consumers"]}],
    )
    objects[-1]["metadata"]["labels"] = {"lq-part-of": prefix}
    return objects


def sentinels(prefix: str, namespace: str) -> list[dict[str, Any]]:
    """Make a last object of each kind: where its grant is seen, all earlier ones have been."""
    granted = [{"verbs": ["watch"], "apiGroups": ["lunaq.dev"], "resources": ["brokers"]}]
    objects = []
    for scope in ("", "Cluster"):
        metadata = {"name": f"{prefix}-zz"} | ({} if scope else {"namespace": namespace})
        user = {"kind": "User", "apiGroup": RBAC_API, "name": f"{prefix}-{scope}"}
        ref = {"apiGroup": RBAC_API, "kind": f"{scope}Role", "name": f"{prefix}-zz"}
        base = {"apiVersion": f"{RBAC_API}/v1", "metadata": metadata}
        objects.append(base | {"kind": f"{scope}Role", "rules": granted})
        objects.append(base | {"kind": f"{scope}RoleBinding", "roleRef": ref, "subjects": [user]})
    return objects


def question(user: str, groups: tuple[str, ...], **attributes: str) -> dict[str, Any]:
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": user,
            "groups": list(groups),
            "resourceAttributes": {"group": "lunaq.dev", "version": "v1alpha1", **attributes},
        },
    }


def ask(apiserver: Cluster, questions: list[dict[str, Any]]) -> list[bool]:
    """Ask the API server; the answers are in the order of the questions."""
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": questions})
    text = apiserver.kubectl("create", "-f", "-", "-o", "json", input=listed).stdout
    answers, decoder = [], json.JSONDecoder()
    while text := text.lstrip():  # one document after the other, not a list
        answer, end = decoder.raw_decode(text)
        answers.append(answer)
        text = text[end:]
    assert [one["spec"]["user"] for one in answers] == [one["spec"]["user"] for one in questions]
    return [one["status"]["allowed"] for one in answers]


def everything(apiserver: Cluster) -> Rbac:
    def items(kind: str) -> list[dict[str, Any]]:
        return apiserver.get(kind, "-A")["items"]

    return Rbac.build(
        items("roles"), items("rolebindings"), items("clusterroles"), items("clusterrolebindings")
    )


@pytest.fixture(name="scene_of")
def make_scene(apiserver, crds, namespace):  # noqa: ARG001 - the API server must know the kinds
    """Apply a seed's scene and wait until the API server has taken notice of all of it."""
    second = apiserver.new_namespace()
    applied: list[dict[str, Any]] = []

    def apply(seed: int) -> list[str]:
        prefix = f"{namespace}-{seed}"
        applied.extend([*scene(seed, prefix, [namespace, second]), *sentinels(prefix, namespace)])
        apiserver.apply(applied[:-4])
        wait_for(lambda: apiserver.get("clusterrole", f"{prefix}-sum")["rules"], "the sum of the roles")
        apiserver.apply(applied[-4:])
        seen = [
            question(f"{prefix}-{scope}", (), verb="watch", resource="brokers", namespace=namespace)
            for scope in ("", "Cluster")
        ]
        wait_for(lambda: all(ask(apiserver, seen)), "the API server to see all roles and bindings")
        return [namespace, second]

    yield apply
    for kind in ("clusterrole", "clusterrolebinding"):
        mine = [one["metadata"]["name"] for one in applied if one["kind"].lower() == kind]
        apiserver.kubectl("delete", kind, *mine, "--ignore-not-found")
    apiserver.delete_namespace(second)


Asked = tuple[dict[str, Any], bool]


def asked_about(policy: Policy, namespace: str, account: str, consumer: str, where: list[str]) -> list[Asked]:
    """List questions about one Consumer, each with our answer."""
    user = names.service_account_user(namespace, account)
    groups = names.service_account_groups(namespace)
    found = [
        (
            question(user, groups, verb="publish", resource="consumers", namespace=namespace, name=consumer),
            policy.allows(PUBLISH),
        )
    ]
    for queue_namespace in where:
        for queue in QUEUES:
            place = {"resource": "queues", "namespace": queue_namespace, "name": queue}
            queue_id = f"{queue_namespace}:{queue}"
            found.append(
                (question(user, groups, verb="publish", **place), policy.allows(PUBLISH_TO, queue_id))
            )
            found.append((question(user, groups, verb="consume", **place), policy.allows(CONSUME, queue_id)))
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_our_answers_are_the_api_servers(apiserver, scene_of, seed):
    namespaces = scene_of(seed)
    rbac = everything(apiserver)
    asked: list[Asked] = []
    for namespace in namespaces:
        for account, consumer in zip(ACCOUNTS, CONSUMERS, strict=True):
            policy = rbac.derive(namespace, consumer, account).policy
            asked += asked_about(policy, namespace, account, consumer, [*namespaces, "elsewhere"])
    theirs = ask(apiserver, [one for one, _ in asked])
    different = [
        (one["spec"]["user"], one["spec"]["resourceAttributes"], f"ours {ours}, theirs {answer}")
        for (one, ours), answer in zip(asked, theirs, strict=True)
        if ours != answer
    ]
    assert different == []
    # A scene in which all answers are the same would prove little.
    counted = Counter(theirs)
    assert counted[True] >= 3
    assert counted[False] >= 3
