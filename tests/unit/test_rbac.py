"""RBAC into policies, rule by rule; `tests/cluster` asks a real API server whether it agrees."""

from typing import Any

import pytest

from lunaq_operator.rbac import Grant, Rbac, Source
from lunaq_runtime.policy import Policy

WORKER = {"kind": "ServiceAccount", "name": "worker", "namespace": "app"}


def rule(verbs, resources=("queues",), groups=("lunaq.dev",), names=(), **more: Any) -> dict[str, Any]:
    return {
        "verbs": list(verbs),
        "resources": list(resources),
        "apiGroups": list(groups),
        "resourceNames": list(names),
        **more,
    }


def role(*rules: dict[str, Any], name="r", namespace="app") -> dict[str, Any]:
    return {"kind": "Role", "metadata": {"name": name, "namespace": namespace}, "rules": list(rules)}


def cluster_role(*rules: dict[str, Any], name="r") -> dict[str, Any]:
    return {"kind": "ClusterRole", "metadata": {"name": name}, "rules": list(rules)}


def binding(*subjects, kind="Role", name="r", namespace: str | None = "app") -> dict[str, Any]:
    return {
        "metadata": {"name": "b", **({"namespace": namespace} if namespace else {})},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
        "subjects": list(subjects),
    }


def meta(name: str) -> dict[str, str]:
    return {"name": name, "namespace": "app"}


def policy_of(*rules: dict[str, Any]) -> Policy:
    """Return what these rules, in a Role in `app`, give to the Consumer `app/worker`."""
    return Rbac.build([role(*rules)], [binding(WORKER)]).derive("app", "worker", "worker").policy


def consume_by(subject: dict[str, Any], **more: Any) -> tuple[str, ...]:
    rbac = Rbac.build([role(rule(["consume"]))], [binding(subject, **more)])
    return rbac.derive("app", "worker", "worker").policy.consume


def test_nothing_bound_grants_nothing():
    assert Rbac.build([role(rule(["*"]))], []).derive("app", "worker", "worker").policy == Policy()


@pytest.mark.parametrize(
    ("granted", "policy"),
    [
        (rule(["consume"], names=["emails"]), Policy(consume=("app:emails",))),
        (rule(["publish"], names=["sent", "log"]), Policy(publish_to=("app:log", "app:sent"))),
        (rule(["publish"], ["consumers"], names=["worker"]), Policy(publish=True)),
        (rule(["publish"], ["consumers"]), Policy(publish=True)),
        (rule(["publish"], ["consumers"], names=["other"]), Policy()),
        (rule(["consume"], ["consumers"]), Policy()),
        (rule(["consume"]), Policy(consume=("app:*",))),
        (rule(["*"]), Policy(publish_to=("app:*",), consume=("app:*",))),
        (rule(["*"], ["*"], ["*"]), Policy(True, ("app:*",), ("app:*",))),
        (rule(["get", "list", "create"]), Policy()),
        (rule(["Consume"]), Policy()),
        (rule(["consume"], groups=[""]), Policy()),
        (rule(["consume"], groups=["rbac.authorization.k8s.io"]), Policy()),
        (rule(["consume"], groups=[]), Policy()),
        (rule(["consume"], ["queues/status"]), Policy()),
        (rule(["consume"], ["queues/*"]), Policy()),
        (rule(["consume"], ["*/status"]), Policy()),
        (rule(["consume"], ["*/*"]), Policy()),
        (rule(["consume"], ["queue"]), Policy()),
        (rule(["consume"], names=["*"]), Policy()),
        (rule(["consume"], names=["", "other:emails", "a.b"]), Policy()),
        (rule(["consume"], names=["em*"]), Policy()),
        (rule(["consume"], names=["e" * 63, "e" * 64]), Policy(consume=("app:" + "e" * 63,))),
        ({"verbs": ["consume"], "nonResourceURLs": ["*"]}, Policy()),
        ({"verbs": ["consume"], "resources": None, "apiGroups": ["lunaq.dev"]}, Policy()),
    ],
)
def test_a_rule_grants_exactly(granted, policy):
    assert policy_of(granted) == policy


def test_verb_resource_and_group_must_meet_in_one_rule():
    assert policy_of(rule(["consume"], ["consumers"]), rule(["get"], ["queues"])) == Policy()


def test_a_role_without_rules_grants_nothing():
    without = {"kind": "Role", "metadata": {"name": "r", "namespace": "app"}, "rules": None}
    assert Rbac.build([without], [binding(WORKER)]).derive("app", "worker", "worker").policy == Policy()


@pytest.mark.parametrize(
    "subject",
    [
        WORKER,
        {"kind": "User", "name": "system:serviceaccount:app:worker"},
        {"kind": "Group", "name": "system:serviceaccounts"},
        {"kind": "Group", "name": "system:serviceaccounts:app"},
        {"kind": "Group", "name": "system:authenticated"},
    ],
)
def test_a_service_account_is_met_by_its_name_and_by_its_groups(subject):
    assert consume_by(subject) == ("app:*",)


@pytest.mark.parametrize(
    "subject",
    [
        {"kind": "ServiceAccount", "name": "worker", "namespace": "other"},
        {"kind": "ServiceAccount", "name": "other", "namespace": "app"},
        {"kind": "User", "name": "worker"},
        {"kind": "User", "name": "system:serviceaccounts"},
        {"kind": "User", "name": "*"},
        {"kind": "Group", "name": "system:serviceaccount:app:worker"},
        {"kind": "Group", "name": "system:serviceaccounts:other"},
        {"kind": "Group", "name": "system:unauthenticated"},
        {"kind": "Group", "name": "system:masters"},
        {"kind": "Robot", "name": "system:serviceaccounts"},
    ],
)
def test_other_subjects_grant_nothing(subject):
    assert consume_by(subject) == ()


def test_a_binding_without_subjects_grants_nothing():
    assert (
        Rbac.build([role(rule(["*"]))], [binding() | {"subjects": None}])
        .derive("app", "worker", "worker")
        .policy
        == Policy()
    )


def test_a_role_binding_to_a_missing_role_grants_nothing():
    assert consume_by(WORKER, name="missing") == ()


def test_a_role_of_the_same_name_in_another_namespace_is_not_taken():
    rbac = Rbac.build([role(rule(["consume"]), namespace="other")], [binding(WORKER)])
    assert rbac.derive("app", "worker", "worker").policy.consume == ()


def test_a_role_binding_grants_in_its_own_namespace():
    rbac = Rbac.build(
        [role(rule(["consume"], names=["jobs"]), namespace="other")], [binding(WORKER, namespace="other")]
    )
    assert rbac.derive("app", "worker", "worker").policy.consume == ("other:jobs",)


def test_the_right_to_publish_at_all_counts_only_in_the_consumers_namespace():
    elsewhere = Rbac.build(
        [role(rule(["publish"], ["consumers"]), namespace="other")], [binding(WORKER, namespace="other")]
    )
    assert elsewhere.derive("app", "worker", "worker").policy == Policy()


def test_a_role_binding_to_a_cluster_role_grants_in_its_namespace_only():
    rbac = Rbac.build(
        [], [binding(WORKER, kind="ClusterRole")], [cluster_role(rule(["consume"], names=["emails"]))]
    )
    assert rbac.derive("app", "worker", "worker").policy.consume == ("app:emails",)


def test_a_role_is_not_taken_for_a_cluster_role_of_its_name():
    rbac = Rbac.build([role(rule(["consume"]))], [binding(WORKER, kind="ClusterRole")], [])
    assert rbac.derive("app", "worker", "worker").policy.consume == ()


def test_a_cluster_role_binding_grants_in_all_namespaces():
    rules = (rule(["consume"], names=["emails"]), rule(["publish"]), rule(["publish"], ["consumers"]))
    rbac = Rbac.build([], [], [cluster_role(*rules)], [binding(WORKER, kind="ClusterRole", namespace=None)])
    assert rbac.derive("app", "worker", "worker").policy == Policy(True, ("*:*",), ("*:emails",))


def test_a_cluster_role_binding_cannot_refer_to_a_role():
    rbac = Rbac.build([role(rule(["consume"]))], [], [], [binding(WORKER, namespace=None)])
    assert rbac.derive("app", "worker", "worker").policy == Policy()


def test_a_cluster_role_bindings_account_without_namespace_is_nobody():
    subject = {"kind": "ServiceAccount", "name": "worker"}
    rbac = Rbac.build(
        [],
        [],
        [cluster_role(rule(["consume"]))],
        [binding(subject, kind="ClusterRole", namespace=None)],
    )
    assert rbac.derive("app", "worker", "worker").policy == Policy()


def test_patterns_are_sorted_and_what_a_wider_one_covers_is_dropped():
    rules = [
        rule(["consume"], names=["zeta", "alpha"]),
        rule(["publish"], names=["zeta"]),
        rule(["publish"]),
    ]
    assert policy_of(*rules) == Policy(publish_to=("app:*",), consume=("app:alpha", "app:zeta"))


def test_a_name_granted_everywhere_covers_it_in_one_namespace():
    rbac = Rbac.build(
        [role(rule(["consume"], names=["emails", "jobs"]))],
        [binding(WORKER)],
        [cluster_role(rule(["consume"], names=["emails"]))],
        [binding(WORKER, kind="ClusterRole", namespace=None)],
    )
    assert rbac.derive("app", "worker", "worker").policy.consume == ("*:emails", "app:jobs")


def test_everything_covers_all_else():
    rbac = Rbac.build(
        [role(rule(["consume"], names=["emails"]))],
        [binding(WORKER)],
        [cluster_role(rule(["*"], ["*"], ["*"]))],
        [binding(WORKER, kind="ClusterRole", namespace=None)],
    )
    assert rbac.derive("app", "worker", "worker").policy == Policy(True, ("*:*",), ("*:*",))


def test_an_unreadable_cluster_role_is_told_to_whom_it_concerns():
    rbac = Rbac.build([], [binding(WORKER, kind="ClusterRole", name="lunaq-consumer")], None)
    derived = rbac.derive("app", "worker", "worker")
    assert derived.policy == Policy()
    assert derived.unresolved == (Source("RoleBinding app/b", "ClusterRole lunaq-consumer"),)
    assert rbac.derive("app", "other", "other").unresolved == ()


def test_a_missing_cluster_role_is_no_unresolvable_one():
    rbac = Rbac.build([], [binding(WORKER, kind="ClusterRole")], [])
    assert rbac.derive("app", "worker", "worker").unresolved == ()


def test_each_right_names_all_that_grants_it_and_what_a_wider_one_covers_is_left_out():
    rbac = Rbac.build(
        [role(rule(["consume", "publish"], names=["emails"])), role(rule(["consume"]), name="all")],
        [
            binding(WORKER),
            binding({"kind": "Group", "name": "system:serviceaccounts"}) | {"metadata": meta("everyone")},
            binding(WORKER, name="all") | {"metadata": meta("all")},
        ],
        [cluster_role(rule(["publish"], ["consumers"]))],
        [binding(WORKER, kind="ClusterRole", namespace=None)],
    )
    all_of_it = Source("RoleBinding app/all", "Role app/all")
    one, other = Source("RoleBinding app/b", "Role app/r"), Source("RoleBinding app/everyone", "Role app/r")
    assert rbac.derive("app", "worker", "worker").grants == (
        Grant("queue.consume", "app:*", (all_of_it,)),
        Grant("queue.publish", "", (Source("ClusterRoleBinding b", "ClusterRole r"),)),
        Grant("queue.publish.queue", "app:emails", (one, other)),
    )
