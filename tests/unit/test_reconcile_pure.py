"""The pure parts of the reconcilers: authorization, readiness, comparing objects, following references."""

from datetime import UTC, datetime, timedelta

import pytest

from lunaq_operator import kinds
from lunaq_operator.conditions import Reason
from lunaq_operator.reconcile import objects, resolve
from lunaq_operator.reconcile.authorization import GRANTED, NOT_GRANTED, WITHDRAWN, authorize
from lunaq_operator.reconcile.context import NotReady, status_changes
from lunaq_operator.reconcile.queue import rounded
from lunaq_operator.reconcile.readiness import readiness
from lunaq_operator.references import add_indexes
from lunaq_operator.settings import Settings
from lunaq_operator.store import Store
from lunaq_runtime.policy import Policy

NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
MAY = Policy(consume=("app:*",))


def condition(status, reason, seconds_ago=0):
    at = (NOW - timedelta(seconds=seconds_ago)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return [{"type": "Authorized", "status": status, "reason": reason, "lastTransitionTime": at}]


def test_who_may_consume_runs():
    found = authorize(MAY, "app:emails", (), NOW, 300)
    assert (found.allowed, found.reason, found.runnable) == (True, GRANTED, True)


def test_who_never_might_consume_does_not_run():
    for before in ((), condition("False", NOT_GRANTED, 5)):
        found = authorize(Policy(), "app:emails", before, NOW, 300)
        assert (found.allowed, found.reason, found.runnable) == (False, NOT_GRANTED, False)


def test_a_withdrawn_right_leaves_the_pods_for_a_while_also_across_restarts():
    first = authorize(Policy(), "app:emails", condition("True", GRANTED, 9999), NOW, 300)
    assert (first.reason, first.runnable, first.again) == (WITHDRAWN, True, 300)
    later = authorize(Policy(), "app:emails", condition("False", WITHDRAWN, 200), NOW, 300)
    assert (later.runnable, later.again) == (True, 100)
    over = authorize(Policy(), "app:emails", condition("False", WITHDRAWN, 300), NOW, 300)
    assert (over.reason, over.runnable, over.again) == (WITHDRAWN, False, None)


def deployment(generation=2, conditions=(), **status):
    counts = {"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}
    return {"metadata": {"generation": generation}, "status": {**counts, **status, "conditions": conditions}}


@pytest.mark.parametrize(
    ("found", "wanted", "suspended", "status", "reason"),
    [
        (deployment(), 2, False, "True", Reason.AVAILABLE),
        (deployment(generation=3), 2, False, "False", Reason.PROGRESSING),
        (deployment(updatedReplicas=1), 2, False, "False", Reason.PROGRESSING),
        (deployment(replicas=3), 2, False, "False", Reason.PROGRESSING),
        (deployment(availableReplicas=1), 2, False, "False", Reason.PROGRESSING),
        (
            deployment(replicas=0, updatedReplicas=0, availableReplicas=0),
            0,
            False,
            "True",
            Reason.SCALED_TO_ZERO,
        ),
        (deployment(replicas=0, updatedReplicas=0, availableReplicas=0), 0, True, "True", Reason.SUSPENDED),
        ({"metadata": {"generation": 1}}, 1, False, "False", Reason.PROGRESSING),
    ],
)
def test_readiness_follows_the_deployment(found, wanted, suspended, status, reason):
    assert readiness(found, wanted, suspended=suspended)[:2] == (status, reason)


def test_a_rollout_past_its_deadline_says_why():
    late = [{"type": "Progressing", "status": "False", "message": "has timed out"}]
    status, reason, message = readiness(deployment(conditions=late, availableReplicas=0), 2, suspended=False)
    assert (status, reason) == ("False", Reason.PODS_FAILING)
    assert "0 of 2 pods are ready: has timed out" in message


def test_refused_pods_say_why():
    failure = [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}]
    assert (
        "exceeded quota"
        in readiness(deployment(conditions=failure, availableReplicas=0), 2, suspended=False)[2]
    )


WANTED = {"kind": "Deployment", "metadata": {"name": "w"}, "spec": {"replicas": 1, "list": [{"a": 1}]}}


def live(checksum, **spec):
    annotations = {objects.ANNOTATION_APPLIED: checksum}
    body = {"replicas": 1, "list": [{"a": 1, "default": 2}], "default": True} | spec
    return {"kind": "Deployment", "metadata": {"name": "w", "annotations": annotations}, "spec": body}


def test_after_a_restart_what_the_server_added_is_no_difference_but_an_edit_is():
    assert objects.as_applied(live("sum"), WANTED, "sum", None)
    assert not objects.as_applied(live("sum", replicas=5), WANTED, "sum", None)
    assert not objects.as_applied(live("sum", list=[{"a": 1}, {"a": 2}]), WANTED, "sum", None)
    assert not objects.as_applied(live("old sum"), WANTED, "sum", None)


def test_what_the_server_made_of_our_own_write_is_no_difference_and_an_edit_of_a_default_is():
    answer = live("sum", cpu="1")
    applied = ("sum", objects.fingerprint(answer))
    answer["status"] = {"replicas": 1}
    answer["metadata"]["resourceVersion"] = "99"
    answer["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "1"
    assert objects.as_applied(answer, WANTED, "sum", applied)
    answer["spec"]["default"] = False
    assert not objects.as_applied(answer, WANTED, "sum", applied)


def test_status_changes_are_only_what_differs():
    old = {"conditions": [1], "ready": 5, "gone": True}
    assert status_changes(old, {"conditions": [1], "ready": 6}) == {"ready": 6, "gone": None}
    assert status_changes(old, dict(old)) == {}
    assert status_changes({}, {"ready": 0}) == {"ready": 0}


@pytest.mark.parametrize(("count", "shown"), [(0, 0), (99, 99), (123, 120), (98765, 99000)])
def test_figures_have_two_digits(count, shown):
    assert rounded(count) == shown


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        ({}, True),
        ({"matchLabels": {"team": "a"}}, True),
        ({"matchLabels": {"team": "b"}}, False),
        ({"matchExpressions": [{"key": "team", "operator": "In", "values": ["a", "b"]}]}, True),
        ({"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["a"]}]}, False),
        ({"matchExpressions": [{"key": "other", "operator": "NotIn", "values": ["a"]}]}, True),
        ({"matchExpressions": [{"key": "other", "operator": "Exists"}]}, False),
        ({"matchExpressions": [{"key": "other", "operator": "DoesNotExist"}]}, True),
        ({"matchExpressions": [{"key": "team", "operator": "Unheard"}]}, False),
    ],
)
def test_label_selectors_select_as_kubernetes_does(selector, selected):
    assert resolve.selects(selector, {"team": "a"}) is selected


def queue(name, created="2026-01-01T00:00:00Z", namespace="app", **spec):
    metadata = {"name": name, "namespace": namespace, "uid": f"{namespace}-{name}", "resourceVersion": "1"}
    return {
        "apiVersion": "lunaq.dev/v1alpha1",
        "kind": "Queue",
        "metadata": {**metadata, "creationTimestamp": created},
        "spec": {"brokerRef": {"name": "main", "namespace": "app"}, **spec},
    }


def conflict(mine, *others):
    store = Store(kinds.watched(cluster_wide=True))
    add_indexes(store)
    store[kinds.QUEUES].replace("", [mine, *others], 5)
    try:
        resolve.refuse_conflict(store, mine, resolve.queue_of(mine))
    except NotReady as outcome:
        return outcome.reason
    return None


OLD, NEW = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def test_the_older_of_two_queues_of_one_name_owns_it():
    older, newer = queue("a", OLD, queueName="x"), queue("b", NEW, queueName="x")
    assert conflict(newer, older) == Reason.CONFLICT
    assert conflict(older, newer) is None


def test_at_equal_age_the_uid_decides():
    one, other = queue("a", queueName="x"), queue("b", queueName="x")
    assert [conflict(one, other), conflict(other, one)] == [None, Reason.CONFLICT]


@pytest.mark.parametrize("derived", ["x.dead", "x.retry.1000"])
def test_names_derived_from_an_older_queue_are_its_own_and_the_reverse(derived):
    base, taker = queue("a", OLD, queueName="x"), queue("b", NEW, queueName=derived)
    assert conflict(taker, base) == Reason.CONFLICT
    base, taker = queue("a", NEW, queueName="x"), queue("b", OLD, queueName=derived)
    assert conflict(base, taker) == Reason.CONFLICT


def test_a_name_that_is_refused_anyway_claims_nothing():
    stranger = queue("b", OLD, namespace="other", queueName="x")
    assert conflict(queue("a", NEW, queueName="x"), stranger) is None


def test_a_broker_that_is_down_leaves_half_of_the_minute_in_which_a_namespace_must_go():
    """The cluster's tests wait less; a namespace's own controller looks only every 8 s or so."""
    assert Settings(runtime_image="any").cleanup_deadline <= 30
