"""Asks the pods of Consumers what they had to deny, and tells one Event for it; a task of the leader's.

By HTTP to the pods' addresses, where metrics are served anyway. Where a NetworkPolicy forbids that, there
are no such Events; the metric and the pod's log remain.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import aiohttp

from lunaq_operator import denials, events, kinds, kube, names, render
from lunaq_operator.explain import Account
from lunaq_operator.references import service_account_of
from lunaq_operator.store import Key, uid_of

if TYPE_CHECKING:
    from lunaq_operator.denials import Right
    from lunaq_operator.reconcile.context import Context
    from lunaq_operator.store import Obj

log = logging.getLogger(__name__)

REASON = "PermissionDenied"

_AT_ONCE = 16
_LARGEST = 1024 * 1024
_CHUNK = 65_536
_PATIENCE = aiohttp.ClientTimeout(total=3)


class Watch:
    """What was seen of each pod and told of each Consumer; lost with the process, which tells no less."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._seen: dict[str, dict[Right, int]] | None = None
        self._told: dict[str, set[Right]] = {}

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        async with aiohttp.ClientSession(timeout=_PATIENCE) as session:
            while True:
                try:
                    await self.look(session)
                except kube.KubeError as error:
                    log.warning("Could not look for denials: %s", error)
                await asyncio.sleep(self._context.settings.denials_recheck)

    async def look(self, session: aiohttp.ClientSession) -> None:
        """Ask all pods once, and tell what is new since the last time.

        What a pod counted before the first look of this process was told by its predecessor.
        """
        pods = await self._pods()
        limit = asyncio.Semaphore(_AT_ONCE)

        async def ask(pod: Obj) -> dict[Right, int] | None:
            async with limit:
                return await _ask(session, pod["status"]["podIP"])

        answers = await asyncio.gather(*map(ask, pods))
        before, self._seen = self._seen, {}
        found: dict[Key, dict[Right, int]] = {}
        for pod, counts in zip(pods, answers, strict=True):
            known = (before or {}).get(uid_of(pod), {})
            self._seen[uid_of(pod)] = known if counts is None else counts
            if before is None or counts is None:
                continue
            total = found.setdefault(_consumer_of(pod), {})
            for right, count in denials.new(known, counts).items():
                total[right] = total.get(right, 0) + count
        there = {uid_of(obj) for obj in self._context.store[kinds.CONSUMERS].objects.values()}
        self._told = {uid: told for uid, told in self._told.items() if uid in there}
        for key, total in found.items():
            if total:
                await self._tell(key, total)

    async def _pods(self) -> list[Obj]:
        """Return the pods that can be asked; none are listed where no Consumer has any."""
        store = self._context.store
        if not any(
            (one.get("status") or {}).get("replicas") for one in store[kinds.DEPLOYMENTS].objects.values()
        ):
            return []
        scopes = self._context.settings.namespaces or ("",)
        listed = [await self._context.kube.list(kinds.PODS, scope, names.LABEL_CONSUMER) for scope in scopes]
        return [
            pod
            for pods in listed
            for pod in pods
            if (pod.get("status") or {}).get("phase") == "Running"
            and pod["status"].get("podIP")
            and not pod["spec"].get("hostNetwork")
            and _consumer_of(pod) in store[kinds.CONSUMERS].objects
        ]

    async def _tell(self, key: Key, total: dict[Right, int]) -> None:
        obj = self._context.store[kinds.CONSUMERS].get(*key)
        if obj is None:
            return
        told = self._told.get(uid_of(obj), set())
        if not told.issuperset(total):
            told = self._told[uid_of(obj)] = told | set(total)
        account = Account(key.namespace, service_account_of(obj))
        note = denials.note(account, key.name, told)
        times = sum(total.values())
        await self._context.recorder.event(obj, events.WARNING, REASON, note, action="Publish", times=times)


def _consumer_of(pod: Obj) -> Key:
    metadata = pod["metadata"]
    return Key(metadata["namespace"], metadata["labels"][names.LABEL_CONSUMER])


async def _ask(session: aiohttp.ClientSession, address: str) -> dict[Right, int] | None:
    """Return one pod's counters, None where it gives none."""
    host = f"[{address}]" if ":" in address else address
    try:
        async with session.get(
            f"http://{host}:{render.HEALTH_PORT}/metrics", allow_redirects=False
        ) as response:
            if response.status != 200:  # noqa: PLR2004 - the one answer that has metrics
                return None
            body = bytearray()
            async for chunk in response.content.iter_chunked(_CHUNK):
                body += chunk
                if len(body) > _LARGEST:
                    return None
            return denials.read(body.decode())
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        log.debug("Pod at %s tells no metrics: %s", address, error)
        return None
