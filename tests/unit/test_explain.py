"""Rights in words: what stands in a status, what is missing, and the commands that grant it."""

import shlex

import pytest

from lunaq_operator import explain
from lunaq_operator.explain import Account
from lunaq_operator.rbac import Derived, Grant, Source
from lunaq_runtime.policy import CONSUME, PUBLISH, PUBLISH_TO, Policy

ACCOUNT = Account("app", "worker")
SOURCE = Source("RoleBinding app/worker", "Role app/worker")


def derived(*grants: Grant, unresolved: tuple[Source, ...] = ()) -> Derived:
    def patterns(action: str) -> tuple[str, ...]:
        return tuple(grant.pattern for grant in grants if grant.action == action)

    policy = Policy(bool(patterns(PUBLISH)), patterns(PUBLISH_TO), patterns(CONSUME))
    return Derived(policy, grants, unresolved)


def test_the_status_lists_each_right_with_what_grants_it():
    found = explain.status(
        derived(
            Grant(CONSUME, "app:emails", (SOURCE,)),
            Grant(PUBLISH, "", (SOURCE,)),
            Grant(PUBLISH_TO, "app:sent", (SOURCE,)),
        )
    )
    by = [{"binding": "RoleBinding app/worker", "role": "Role app/worker"}]
    assert found == {
        "consume": "app:emails",
        "publish": "app:sent",
        "grants": [
            {"action": "queue.consume", "queues": "app:emails", "grantedBy": by},
            {"action": "queue.publish", "grantedBy": by},
            {"action": "queue.publish.queue", "queues": "app:sent", "grantedBy": by},
        ],
    }


def test_nothing_granted_says_so():
    assert explain.status(derived()) == {"consume": "none", "publish": "none", "grants": []}


def test_without_the_right_to_publish_at_all_the_column_says_none():
    assert explain.status(derived(Grant(PUBLISH_TO, "app:*", (SOURCE,))))["publish"] == "none"


def test_the_status_is_bounded_and_says_how_much_it_leaves_out():
    many = tuple(Source(f"RoleBinding app/b{number}" + "x" * 400, "Role app/r") for number in range(9))
    grants = [Grant(CONSUME, f"app:q{number:03}", many) for number in range(120)]
    found = explain.status(derived(*grants, unresolved=many * 2))
    assert found["consume"] == "app:q000, app:q001, app:q002, +117"
    assert len(found["grants"]) == 50
    assert found["omitted"] == 70
    assert len(found["grants"][0]["grantedBy"]) == 5
    assert len(found["grants"][0]["grantedBy"][0]["binding"]) == 340
    assert len(found["unresolved"]) == 10


def test_the_granting_command_names_object_namespace_and_account():
    text = explain.grant_queue(ACCOUNT, "consume", "mail", "emails")
    create, bind = (part.split(" | ")[0] for part in text.split(" && "))
    assert create == (
        "kubectl create role lunaq:consume:queues:emails --verb=consume --resource=queues.lunaq.dev "
        "--resource-name=emails -n mail --dry-run=client -o yaml"
    )
    assert bind == (
        "kubectl create rolebinding lunaq:consume:queues:emails:app:worker "
        "--role=lunaq:consume:queues:emails --serviceaccount=app:worker -n mail --dry-run=client -o yaml"
    )


def test_commands_for_different_accounts_verbs_and_objects_name_different_bindings():
    commands = [
        explain.grant_queue(Account(namespace, name), verb, "mail", queue)
        for namespace in ("app", "web")
        for name in ("a", "a-consume-b")
        for verb in ("consume", "publish")
        for queue in ("b", "c", "b-consume-b")
    ]
    commands += [explain.grant_publish(Account("mail", "a"), name) for name in ("b", "c")]
    names = [shlex.split(command)[shlex.split(command).index("rolebinding") + 1] for command in commands]
    assert len(set(names)) == len(commands)


def test_a_name_cannot_break_out_of_the_command():
    text = explain.grant_queue(Account("app", "x; reboot"), "consume", "app", "$(reboot)")
    words = shlex.split(text)
    assert "lunaq:consume:queues:$(reboot)" in words
    assert "--serviceaccount=app:x; reboot" in words


@pytest.mark.parametrize(
    ("held", "targets", "rights"),
    [
        (Policy(consume=("app:*",)), [], []),
        (Policy(), [], ["consume app:emails"]),
        (Policy(), [("app", "sent")], ["consume app:emails", "publish at all", "publish to app:sent"]),
        (
            Policy(True, ("app:sent",), ("*:emails",)),
            [("app", "sent"), ("web", "sent")],
            ["publish to web:sent"],
        ),
        (Policy(publish_to=("*:*",), consume=("*:*",)), [("app", "sent")], ["publish at all"]),
    ],
)
def test_what_is_missing_is_what_the_policy_denies(held, targets, rights):
    found = explain.missing(ACCOUNT, "worker", ("app", "emails"), targets, held)
    assert [one.right for one in found] == rights


def test_the_description_shows_grants_their_sources_and_what_is_missing():
    found = derived(
        Grant(CONSUME, "app:emails", (SOURCE, Source("ClusterRoleBinding x", "ClusterRole y"))),
        Grant(PUBLISH_TO, "app:sent", (SOURCE,)),
        unresolved=(Source("RoleBinding app/b", "ClusterRole reader"),),
    )
    lacks = explain.missing(ACCOUNT, "worker", ("app", "emails"), [("app", "sent")], found.policy)
    text = explain.describe(ACCOUNT, "worker", found, lacks)
    assert "consume         app:emails  RoleBinding app/worker -> Role app/worker" in text
    assert "consume         app:emails  ClusterRoleBinding x -> ClusterRole y" in text
    assert "without effect" in text
    assert "RoleBinding app/b -> ClusterRole reader" in text
    assert (
        "Missing: publish at all. Grant it with:\n  kubectl create role lunaq:publish:consumers:worker"
        in text
    )
