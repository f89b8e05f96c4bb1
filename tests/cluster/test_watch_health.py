"""The probes of a running operator, and Events, on a real API server."""

import asyncio

from operators import Operator

from harness.waiting import wait_for
from lunaq_operator import kinds, kube
from lunaq_operator.events import NORMAL, Recorder


def silent_queues(health):
    """Give this answer of /healthz back if the watch of queues is among those it calls silent."""
    return health if any(path.endswith("/queues") for path in health["silent"]) else None


def test_the_operator_is_healthy_while_its_watches_bring_data_and_not_when_they_are_silent(
    apiserver,
    crds,  # noqa: ARG001 - the CRDs must be there
    namespace,
    tmp_path,
):
    limit = {"namespaces": [namespace], "silence_limit": 10.0}
    operator = Operator(apiserver, tmp_path, **limit).start().wait_working()
    try:
        assert operator.ask("/healthz")["ok"]
        # Bookmarks come about every 60 s, so that ten seconds pass without any, for one watch before another.
        health = wait_for(lambda: silent_queues(operator.ask("/healthz")), "the watch of queues to be silent")
        assert not health["ok"]
    finally:
        operator.stop()
    assert operator.exit_status == 0


def test_an_event_that_is_told_again_is_counted_on_the_first(apiserver, namespace):
    async def tell():
        client = kube.Kube(await kube.load(str(apiserver.kubeconfig)))
        try:
            regarding = await client.get(kinds.NAMESPACES, "", namespace)
            regarding["metadata"]["namespace"] = namespace
            recorder = Recorder(client, "test")
            for _ in range(3):
                await recorder.event(regarding, NORMAL, "Told", "the same")
            await recorder.event(regarding, NORMAL, "Told", "another")
        finally:
            await client.close()

    asyncio.run(tell())
    items = apiserver.get("events.events.k8s.io", "-n", namespace)["items"]
    counts = {event["note"]: event.get("series", {}).get("count") for event in items}
    assert counts == {"the same": 3, "another": None}
