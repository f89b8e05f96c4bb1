"""The main job on real pods: Helm installs the chart, kubectl applies the example, messages go through.

Lossless means: the ids that a client published with confirms and the ids in the ledger (which the handler
writes by publishing, and this test reads back from the broker) are the same set.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from application import Application, handled

from harness.waiting import wait_for

MESSAGES = 1_000

pytestmark = [pytest.mark.timeout(600)]


def mails(count: int, **extra: object) -> list[dict[str, object]]:
    return [{"to": f"user{n}@example.com", "subject": f"mail {n}", **extra} for n in range(count)]


@pytest.fixture
def app(lunaq, node, broker_pod, tmp_path):  # noqa: ARG001 - lunaq: the chart must be installed
    application = Application(node, broker_pod, tmp_path)
    application.install()
    yield application
    application.remove()


@pytest.fixture
def slow_app(lunaq, node, broker_pod, tmp_path):  # noqa: ARG001 - lunaq: the chart must be installed
    application = Application(node, broker_pod, tmp_path, slow=20)
    application.install()
    yield application
    application.remove()


async def test_a_thousand_messages_are_each_handled_once_and_an_ungranted_publish_is_denied(app) -> None:
    ids = await app.publish(mails(MESSAGES - 1) + mails(1, audit=True))
    await app.wait_depth("sent", MESSAGES)
    await app.wait_idle()
    records = await app.ledger()
    assert handled(records) == dict.fromkeys(ids, 1)
    assert [record["audit"] for record in records if "audit" in record] == ["PermissionDenied"]
    assert await app.depth("audit") == 0


async def test_deleting_the_rolebinding_stops_the_publishing_and_restoring_it_goes_on(app) -> None:
    ids = await app.publish(mails(10))
    await app.wait_depth("sent", 10)
    app.kubectl("delete", "rolebinding", "email-worker")
    app.kubectl("wait", "--for=condition=Ready=false", "consumer/email-worker", "--timeout=60s")
    await app.wait_unconsumed("emails")
    before = len(ids)
    ids += await app.publish(mails(20))
    assert await app.depth("emails") == 20
    assert await app.depth("sent") == before
    app.kubectl("apply", "-f", str(app.folder / "rbac.yaml"))
    await app.wait_depth("sent", len(ids))
    assert handled(await app.ledger()) == dict.fromkeys(ids, 1)


async def test_withdrawing_only_the_right_to_publish_turns_publishes_into_denials(app) -> None:
    await app.publish(mails(5))
    await app.wait_depth("sent", 5)
    rules = (
        '[{"op": "replace", "path": "/rules", "value": [{"apiGroups": ["lunaq.dev"], '
        '"resources": ["queues"], "resourceNames": ["emails"], "verbs": ["consume"]}]}]'
    )
    app.kubectl("patch", "role", "email-worker", "--type=json", "-p", rules)
    dead = await publish_until_denied(app)
    sent = await app.depth("sent")
    await app.publish(mails(5))
    await app.wait_depth("emails.dead", dead + 5)
    assert await app.depth("sent") == sent
    [event] = await asyncio.to_thread(wait_for, lambda: denials_told(app), "an event", 60)
    assert "publish at all" in event["note"]
    assert "kubectl create role lunaq:publish:" in event["note"]


def denials_told(app: Application) -> list[dict[str, Any]]:
    events = json.loads(app.kubectl("get", "events.events.k8s.io", "-o", "json"))["items"]
    return [event for event in events if event["reason"] == "PermissionDenied"]


async def publish_until_denied(app: Application) -> int:
    """Publish a mail at a time until one dies because its publish is denied; return the dead letters."""
    for _ in range(60):
        sent, dead = await app.depth("sent"), await app.depth("emails.dead")
        await app.publish(mails(1))
        while (await app.depth("sent"), await app.depth("emails.dead")) == (sent, dead):  # noqa: ASYNC110
            await asyncio.sleep(0.1)  # the event is in the broker, which can only be asked
        if await app.depth("emails.dead") > dead:
            return dead + 1
    raise AssertionError("the pod still publishes after 60 mails: the withdrawn right lives on")


async def test_a_consumer_pod_killed_in_the_middle_loses_nothing(slow_app) -> None:
    app = slow_app
    ids = await app.publish(mails(MESSAGES))
    await app.wait_depth("sent", MESSAGES // 5)
    (pod,) = app.pods()
    await asyncio.to_thread(app.node.kill_pod, app.namespace, pod)
    assert await app.depth("sent") < MESSAGES, "killed too late: everything had been handled"
    await app.wait_depth("sent", MESSAGES)
    await app.wait_idle()
    assert set(handled(await app.ledger())) == set(ids)


async def test_a_rolling_restart_in_the_middle_loses_nothing_and_repeats_nothing(slow_app) -> None:
    app = slow_app
    ids = await app.publish(mails(MESSAGES))
    await app.wait_depth("sent", MESSAGES // 5)
    old = app.pods()
    app.kubectl("rollout", "restart", "deployment/email-worker")
    assert await app.depth("sent") < MESSAGES, "restarted too late: everything had been handled"
    await asyncio.to_thread(app.kubectl, "rollout", "status", "deployment/email-worker", "--timeout=180s")
    await app.wait_depth("sent", MESSAGES)
    await app.wait_idle()
    assert set(app.pods()).isdisjoint(old)
    assert handled(await app.ledger()) == dict.fromkeys(ids, 1)


async def test_messages_that_wait_for_their_retry_survive_a_restart_of_rabbitmq(app) -> None:
    ids = await app.publish(mails(100, fail_times=2))
    # Asked of the queues themselves: what the management API tells may be older than a message waits.
    async with asyncio.timeout(60):
        while sum([await app.depth(f"emails.retry.{ms}") for ms in (1000, 2000)]) < 20:  # noqa: ASYNC110 - a broker tells nobody
            await asyncio.sleep(0.1)
    await asyncio.to_thread(app.broker.restart)
    await app.wait_depth("sent", 100, seconds=300)
    await app.wait_idle()
    assert set(handled(await app.ledger())) == set(ids)
    assert await app.depth("emails.dead") == 0


async def test_delete_of_the_manifests_and_of_the_namespace_both_finish_within_a_minute(app) -> None:
    await app.publish(mails(5))
    await app.wait_depth("sent", 5)
    begun = time.monotonic()
    app.kubectl("delete", "-f", str(app.folder), "--timeout=60s")
    app.kubectl("wait", "--for=delete", "deployment/email-worker", "--timeout=60s")
    assert time.monotonic() - begun < 60
    assert await app.depth("sent") == 5, "Retain promises to keep the queues and what they hold"
    begun = time.monotonic()
    app.node.kubectl("delete", "namespace", app.namespace, "--timeout=60s")
    assert time.monotonic() - begun < 60


async def test_a_namespace_with_everything_in_it_goes_within_a_minute(app) -> None:
    begun = time.monotonic()
    await asyncio.to_thread(app.node.kubectl, "delete", "namespace", app.namespace, "--timeout=60s")
    assert time.monotonic() - begun < 60
