"""An operator with nothing to do writes nothing, also after a restart."""

import pytest
from operators import Operator

from harness.waiting import wait_for

_PASSES = 50
_RESTLESS = dict.fromkeys(("broker_recheck", "queue_recheck", "topology_recheck", "source_recheck"), 0.2)
"""Passes come from rechecks alone here: many of them in little time."""


@pytest.fixture(scope="module")
def operator_settings() -> dict:
    return _RESTLESS


def _versions(app) -> dict:
    kinds = "brokers,queues,consumers,deployments,configmaps,serviceaccounts,secrets"
    return {
        (obj["kind"], obj["metadata"]["name"]): obj["metadata"]["resourceVersion"] for obj in app.list(kinds)
    }


def _set_up(app) -> None:
    app.secret()
    app.own_users()
    app.queue("emails", deletionPolicy="Delete")
    app.allow_consuming()
    # A quantity that the API server writes in another way than we do.
    app.consumer(template={"resources": {"requests": {"cpu": "1000m"}}})
    app.wait_ready("queue", "emails")
    app.wait_reason("consumer", "worker", "Progressing")
    wait_for(lambda: app.list("pods"), "a pod, so that the Deployment's status has settled")


def _quiet(operator) -> dict:
    """Wait until a stretch of passes made no write; return the figures at its end."""

    def settled():
        before = operator.readiness()
        after = wait_for(
            lambda: (now := operator.readiness())["reconciled"] >= before["reconciled"] + _PASSES and now,
            "passes",
        )
        return after if _written(after) == _written(before) else None

    return wait_for(settled, "the operator to settle", 60)


def _written(figures) -> tuple:
    """Return how often the cluster was written to, and a broker's users."""
    return figures["writes"], figures["userWrites"]


def test_an_idle_operator_makes_no_write(app, operator):
    _set_up(app)
    before = _quiet(operator)
    versions = _versions(app)
    after = wait_for(
        lambda: (now := operator.readiness())["reconciled"] >= before["reconciled"] + _PASSES and now,
        f"{_PASSES} reconciles",
        120,
    )
    assert _written(after) == _written(before)
    assert _versions(app) == versions


def test_a_restarted_operator_makes_no_write_where_all_is_as_it_should_be(apiserver, crds, app, tmp_path):  # noqa: ARG001
    first = Operator(apiserver, tmp_path, namespaces=[app.namespace], **_RESTLESS).start().wait_working()
    _set_up(app)
    _quiet(first)
    first.stop()
    app.kubectl("patch", "consumer", "worker", "--type=json", "-p", _NO_RESOURCES)
    second = Operator(apiserver, tmp_path, namespaces=[app.namespace], **_RESTLESS).start().wait_working()
    try:
        _quiet(second)  # has rendered the Deployment without the quantity
        versions = _versions(app)
    finally:
        second.stop()
    third = Operator(apiserver, tmp_path, namespaces=[app.namespace], **_RESTLESS).start().wait_working()
    try:
        figures = wait_for(
            lambda: (now := third.readiness())["reconciled"] >= _PASSES and now, "reconciles", 90
        )
        assert _written(figures) == (0, 0)
        assert _versions(app) == versions
    finally:
        third.stop()


_NO_RESOURCES = '[{"op": "remove", "path": "/spec/template"}]'
