"""kopf watches a real API server, and the store follows it: in chunks, through gaps, per namespace."""

import asyncio
import contextlib

import kopf
import pytest

from harness.apiserver import ApiServer
from harness.recording import RecordingProxy, context_of
from harness.waiting import eventually
from lunaq_operator import kinds, kube, watch
from lunaq_operator.rbac import Rbac
from lunaq_operator.store import Store
from lunaq_operator.watch import Lists


@contextlib.asynccontextmanager
async def watching(kubeconfig, store, chunk=watch.CHUNK):
    """Run kopf on the store; yields its Lists and all changes that were told."""
    client = kube.Kube(await kube.load(str(kubeconfig)))
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


async def until(condition, what, timeout=30):  # noqa: ASYNC109 - handed on to the text of the failure
    async def check():
        return condition()

    await eventually(check, what, timeout)


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
        async with watching(apiserver.kubeconfig, queues, chunk=2):
            await until(lambda: queues.synced, "the barrier")
            assert names(queues) == {f"q{number}" for number in range(5)}
    assert seen == [5]


async def test_changes_are_followed_and_bookkept(apiserver, namespace, queues):
    async with watching(apiserver.kubeconfig, queues) as (lists, changes):
        await until(lambda: queues.synced, "the barrier")
        await asyncio.to_thread(apiserver.apply, manifest(namespace, "late"))
        await until(lambda: "late" in names(queues), "the new one")
        await kubectl(apiserver, "delete", "queue", "q0", "-n", namespace)
        await until(lambda: "q0" not in names(queues), "the deletion")
        assert {"late", "q0"} <= set(changes)
        assert lists.age() < 60


@pytest.fixture
def through_a_proxy(apiserver, namespace, tmp_path):
    """A proxy that can be cut, and a kubeconfig through it of one who may read RBAC objects."""
    resources = "--resource=roles.rbac.authorization.k8s.io,rolebindings.rbac.authorization.k8s.io"
    for command in (
        ["serviceaccount", "reader"],
        ["role", "reader", "--verb=list,watch", resources],
        ["rolebinding", "reader", "--role=reader", f"--serviceaccount={namespace}:reader"],
    ):
        apiserver.kubectl("create", *command, "-n", namespace)
    token = apiserver.kubectl("create", "token", "reader", "-n", namespace).stdout.strip()
    server, tls = context_of(apiserver.kubeconfig)
    proxy = RecordingProxy(server, tls).start()
    yield proxy, proxy.kubeconfig(token, tmp_path)
    proxy.stop()


@pytest.fixture
def restartable(apiserver):
    """Name the API server as one that can be restarted; a foreign cluster's cannot."""
    assert isinstance(apiserver, ApiServer), "unset LUNAQ_TEST_KUBECONFIG: this test restarts the API server"
    return apiserver


async def test_a_binding_deleted_while_the_watch_was_away_is_gone_after_410(
    restartable, namespace, through_a_proxy, caplog
):
    """A restarted API server remembers no old versions: the watch that goes on from one gets 410 Gone."""
    proxy, kubeconfig = through_a_proxy
    store = Store([kinds.ROLES, kinds.ROLE_BINDINGS], (namespace,))

    async def create(*command):
        await kubectl(restartable, "create", *command, "-n", namespace)

    def consumes():
        objects = (store[kind].objects.values() for kind in (kinds.ROLES, kinds.ROLE_BINDINGS))
        return Rbac.build(*objects).derive(namespace, "worker", "worker").policy.consume

    await create("role", "consume", "--verb=consume", "--resource=queues.lunaq.dev")
    bind = ("rolebinding", "consume", "--role=consume", f"--serviceaccount={namespace}:worker")
    await create(*bind)
    with caplog.at_level("DEBUG", "kopf"):
        async with watching(kubeconfig, store) as (_, changes):
            await until(lambda: consumes() == (f"{namespace}:*",), "the right")
            proxy.cut()
            await kubectl(restartable, "delete", "rolebinding", "consume", "-n", namespace)
            await create("role", "late", "--verb=get", "--resource=pods")
            # Not in another thread: a process ends with the thread that started it.
            restartable.stop_api()
            restartable.start_api()
            assert consumes() == (f"{namespace}:*",), "the watch is not away"
            changes.clear()
            proxy.mend()
            await until(lambda: consumes() == (), "the right to be gone", 60)
            assert "consume" in changes
            await create(*bind)
            await until(lambda: consumes() == (f"{namespace}:*",), "the watch to go on", 60)
    lists = [one for one in proxy.asked if one.path.endswith("/rolebindings") and "watch" not in one.query]
    assert len(lists) == 2, "it was listed again, and once"
    assert "Restarting the watch-stream for rolebindings" in caplog.text, "it was not 410 that kopf saw"
