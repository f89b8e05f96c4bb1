"""Puts watch, store, work queue, elector and reconcilers together into one running operator; used by `main`.

The order matters: everything is watched from the start, in every replica, but nothing is worked on before
all kinds are listed in full and the Lease is ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

import kopf

from lunaq_operator import kinds, names, watch
from lunaq_operator.events import Recorder
from lunaq_operator.kube import KubeError
from lunaq_operator.lease import Elector
from lunaq_operator.management import HttpManagement, ManagementError
from lunaq_operator.reconcile import broker, consumer, denials, policies, queue
from lunaq_operator.reconcile.context import Context
from lunaq_operator.reconcile.managements import Managements
from lunaq_operator.reconcile.pool import Pool
from lunaq_operator.references import DERIVE_POLICIES, RBAC, Work, add_indexes, affected
from lunaq_operator.store import Store
from lunaq_operator.watch import Lists
from lunaq_operator.workqueue import Retry, WorkQueue
from lunaq_runtime.brokers.base import BrokerError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lunaq_operator.kinds import Kind
    from lunaq_operator.kube import Kube
    from lunaq_operator.management import Management
    from lunaq_operator.reconcile.pool import Target
    from lunaq_operator.settings import Settings
    from lunaq_operator.store import Key, Obj
    from lunaq_runtime.brokers.base import Broker

log = logging.getLogger(__name__)

_POLL = 2.0
_CLOSE_PATIENCE = 3.0
"""Seconds that brokers get to say goodbye: one that is silent must not hold up the end of the process."""
_RECONCILERS: dict[str, Callable[[Context, Key], Awaitable[float | None]]] = {
    kinds.BROKERS.plural: broker.reconcile,
    kinds.QUEUES.plural: queue.reconcile,
    kinds.CONSUMERS.plural: consumer.reconcile,
    RBAC: policies.reconcile,
}


class Engine:
    """One operator process; `make_broker` builds a broker connection (the tests bring their own)."""

    def __init__(
        self,
        settings: Settings,
        kube: Kube,
        make_broker: Callable[[Target], Broker],
        make_management: Callable[[str, Target], Management] = HttpManagement,
    ) -> None:
        self._settings = settings
        self._kube = kube
        self.store = Store(kinds.watched(cluster_wide=settings.cluster_wide), settings.namespaces)
        add_indexes(self.store)
        self.lists = Lists(self.store, self.on_change, self.on_listed)
        self.queue: WorkQueue[Work] = WorkQueue(self._work, workers=settings.workers)
        self.elector = Elector(
            kube,
            settings.lease_namespace,
            settings.lease_name,
            settings.identity,
            timing=settings.lease_timing,
        )
        self._pool = Pool(make_broker)
        self._managements = Managements(make_management)
        self._context = Context(
            store=self.store,
            kube=kube,
            recorder=Recorder(kube, settings.identity),
            pool=self._pool,
            managements=self._managements,
            settings=settings,
            enqueue=self.queue.add,
        )
        self._synced = asyncio.Event()

    @property
    def figures(self) -> dict[str, int]:
        """Return how much was done so far: reconciles, and writes to the cluster and to brokers' users."""
        return {
            "reconciled": self.queue.done,
            "writes": self._kube.writes,
            "userWrites": self._managements.writes,
            "waiting": len(self.queue),
        }

    @property
    def working(self) -> bool:
        """Whether this process does the work: it leads and has seen everything."""
        return self.store.synced and self.elector.leading.is_set()

    def on_change(self, kind: Kind, obj: Obj) -> None:
        """Have everything looked at that an object's change may concern; called for every change seen."""
        for work in affected(kind, obj, self.store):
            self.queue.add(work, urgent=work == DERIVE_POLICIES)

    def on_listed(self) -> None:
        """Open the barrier once every kind is listed in full; called after every list."""
        if self.store.synced:
            self._synced.set()

    async def run(self, stop: asyncio.Event, on_signals_taken: Callable[[], None] = lambda: None) -> None:
        """Run until `stop` is set; raises LeaseLost, or RuntimeError where the watching ended by itself.

        kopf takes the process' signals when it starts; `on_signals_taken` is called then, to take them back.
        """
        await self._await_kinds(stop)
        if stop.is_set():
            return
        kopf_stop = asyncio.Event()
        running = {
            asyncio.create_task(self._lead(), name="lead"),
        }
        # Last, because kopf ends every task that was made after it when it ends itself.
        watching = asyncio.create_task(self._watch(kopf_stop, on_signals_taken), name="watch")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        done: set[asyncio.Task[Any]] = set()
        try:
            done, _ = await asyncio.wait({*running, watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*running, stopping):
                task.cancel()
            await asyncio.gather(*running, stopping, return_exceptions=True)
            if stopping in done:
                await self.elector.release()
            await self._shut_down(watching, kopf_stop)
        for task in done - {stopping}:
            task.result()
            raise RuntimeError(f"{task.get_name()} ended by itself")

    async def _lead(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.elector.run(), name="elector")
            await self.elector.leading.wait()
            await self._synced.wait()
            log.info("Working: all kinds are listed and the lease is ours")
            group.create_task(self.queue.run(), name="work")
            group.create_task(denials.Watch(self._context).run(), name="denials")

    async def _watch(self, stop: asyncio.Event, on_signals_taken: Callable[[], None]) -> None:
        others = asyncio.all_tasks()
        registry = kopf.OperatorRegistry()
        settings = watch.settings()
        watch.register(registry, settings, self._kube, self.store, self.lists, self.on_change)
        tasks = await kopf.spawn_tasks(
            registry=registry,
            settings=settings,
            # kopf's own asks for the user's name, which the numeric user of a pod does not have.
            identity=self._settings.identity,  # type: ignore[arg-type]  # a NewType that kopf keeps private
            standalone=True,
            stop_flag=stop,
            **watch.namespaces_or_cluster(self._settings.namespaces),
        )
        on_signals_taken()
        await kopf.run_tasks(tasks, ignored=others)

    async def _shut_down(self, watching: asyncio.Task[None], kopf_stop: asyncio.Event) -> None:
        # First, for kopf would wait 5 s for the tasks of these connections, and then end them itself.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_PATIENCE):
                await self._pool.close()
                await self._managements.close()
        kopf_stop.set()
        with contextlib.suppress(Exception):
            await asyncio.wait({watching}, timeout=10)
        watching.cancel()

    async def _await_kinds(self, stop: asyncio.Event) -> None:
        """Wait until the API server serves our kinds: kopf looks for them only once."""
        wanted = set(names.PLURALS.values())
        while not stop.is_set():
            try:
                missing = wanted - await self._kube.served(names.GROUP, names.VERSION)
            except KubeError as error:
                log.warning("Waiting for the API server: %s", error)
            else:
                if not missing:
                    return
                log.warning("Waiting for the CRDs of: %s", ", ".join(sorted(missing)))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _POLL)

    async def _work(self, work: Work) -> float | None:
        try:
            return await _RECONCILERS[work.kind](self._context, work.key)
        except (KubeError, BrokerError, ManagementError) as error:
            raise Retry(str(error)) from error
