"""kopf watches a real API server, and the store follows it: in chunks, through gaps, per namespace."""

import asyncio
import contextlib
import json

import kopf
import pytest

from harness.waiting import eventually
from lunaq_operator import kinds, kube, watch
from lunaq_operator.store import Store
from lunaq_operator.watch import Lists

GONE = json.dumps({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}})


class Gap:
    """Lets a watch's stream through, or swallows it and then says `410 Gone`, as after a long outage."""

    def __init__(self, monkeypatch) -> None:
        self.open = False
        self.gone = asyncio.Event()
        through = watch._AliveContent.iter_chunked
        gap = self

        async def iter_chunked(content, size):
            chunks = through(content, size)
            pending = asyncio.ensure_future(anext(chunks))
            gone = asyncio.ensure_future(gap.gone.wait())
            try:
                while True:
                    await asyncio.wait({pending, gone}, return_when=asyncio.FIRST_COMPLETED)
                    if gone.done():
                        yield GONE.encode() + b"\n"
                        return
                    chunk = pending.result()
                    pending = asyncio.ensure_future(anext(chunks))
                    if not gap.open:
                        yield chunk
            except StopAsyncIteration:
                return
            finally:
                pending.cancel()
                gone.cancel()

        monkeypatch.setattr(watch._AliveContent, "iter_chunked", iter_chunked)


@contextlib.asynccontextmanager
async def watching(apiserver, store, chunk=watch.CHUNK):
    """Run kopf on the store; yields its Lists and all changes that were told."""
    client = kube.Kube(await kube.load(str(apiserver.kubeconfig)))
    changes = []
    registry, settings, stop = kopf.OperatorRegistry(), watch.settings(), asyncio.Event()
    settings.watching.chunk_size = chunk
    tell = lambda _, obj: changes.append(obj["metadata"]["name"])  # noqa: E731
    lists = Lists(store, tell)
    watch.register(registry, settings, client, store, lists, tell)
    namespaces = next(iter(store)).scopes
    running = asyncio.create_task(
        kopf.operator(
            registry=registry,
            settings=settings,
            standalone=True,
            stop_flag=stop,
            **watch.namespaces_or_cluster(name for name in namespaces if name),
        )
    )
    try:
        yield lists, changes
    finally:
        stop.set()
        await running
        await client.close()


def manifest(namespace, name):
    metadata = {"name": name, "namespace": namespace}
    spec = {"brokerRef": {"name": "main"}}
    return {"apiVersion": "lunaq.dev/v1alpha1", "kind": "Queue", "metadata": metadata, "spec": spec}


def names(store):
    return {key.name for key in store[kinds.QUEUES].objects}


async def until(condition, what):
    async def check():
        return condition()

    await eventually(check, what)


async def kubectl(apiserver, *args):
    await asyncio.to_thread(apiserver.kubectl, *args)


@pytest.fixture
def queues(apiserver, crds, namespace):  # noqa: ARG001 - the CRDs must be there
    apiserver.apply([manifest(namespace, f"q{number}") for number in range(5)])
    return Store([kinds.QUEUES], (namespace,))


async def test_a_list_in_chunks_is_complete_before_the_barrier_opens(apiserver, queues):
    seen = []
    replace = type(queues[kinds.QUEUES]).replace

    def spy(self, scope, items, version):
        seen.append(len(items))
        return replace(self, scope, items, version)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(queues[kinds.QUEUES]), "replace", spy)
        async with watching(apiserver, queues, chunk=2):
            await until(lambda: queues.synced, "the barrier")
            assert names(queues) == {f"q{number}" for number in range(5)}
    assert seen == [5]


async def test_changes_are_followed_and_bookkept(apiserver, namespace, queues):
    async with watching(apiserver, queues) as (lists, changes):
        await until(lambda: queues.synced, "the barrier")
        await asyncio.to_thread(apiserver.apply, manifest(namespace, "late"))
        await until(lambda: "late" in names(queues), "the new one")
        await kubectl(apiserver, "delete", "queue", "q0", "-n", namespace)
        await until(lambda: "q0" not in names(queues), "the deletion")
        assert {"late", "q0"} <= set(changes)
        assert lists.age() < 60


async def test_what_was_deleted_in_a_gap_vanishes_at_the_next_list(apiserver, namespace, queues, monkeypatch):
    gap = Gap(monkeypatch)
    async with watching(apiserver, queues) as (_, changes):
        await until(lambda: queues.synced, "the barrier")
        gap.open = True
        await kubectl(apiserver, "delete", "queue", "q0", "-n", namespace)
        await asyncio.to_thread(apiserver.apply, manifest(namespace, "late"))
        assert "q0" in names(queues)
        changes.clear()
        gap.gone.set()
        await until(lambda: "late" in names(queues), "the next list")
        gap.gone.clear()
        gap.open = False
        assert "q0" not in names(queues)
        assert {"q0", "late"} <= set(changes)
        await kubectl(apiserver, "delete", "queue", "q1", "-n", namespace)
        await until(lambda: "q1" not in names(queues), "the watch to go on")
