"""Takes our finalizers off everything, for an operator that is going or gone; the command of that name.

A running operator would put them back at once, so its Lease is taken from it first: it ends, as does any
leader that was overtaken, and its successor waits until the Lease expires.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from lunaq_operator import kinds, kube, names
from lunaq_operator.kube import Kube, KubeError
from lunaq_operator.lease import Observed, Timing, taken
from lunaq_operator.store import key_of

if TYPE_CHECKING:
    from lunaq_operator.kinds import Kind
    from lunaq_operator.store import Obj

log = logging.getLogger(__name__)

_TRIES = 5
_HELD = 300.0
"""Seconds for which no operator starts working again; an uninstall is over by then."""

_IDENTITY = "release-finalizers"


async def release_finalizers(
    kubeconfig: str, namespaces: tuple[str, ...], lease: tuple[str, str] | None
) -> None:
    """Release all objects of ours in `namespaces` (none: everywhere); `lease` is namespace and name."""
    client = Kube(await kube.load(kubeconfig))
    try:
        if lease is not None:
            await _take_lease(client, *lease)
        for kind in kinds.OURS:
            if kind.plural not in await client.served(kind.group, kind.version):
                continue  # its CRD is gone already, and all its objects with it
            for namespace in namespaces or ("",):
                await _release(client, kind, namespace)
    finally:
        await client.close()


async def _take_lease(client: Kube, namespace: str, name: str) -> None:
    """Take the Lease whoever holds it, and wait until its holder must have noticed."""
    timing = Timing(duration=_HELD)
    for _ in range(_TRIES):
        lease = await client.get_lease(namespace, name)
        if lease is None:
            return  # no operator ever led here
        spec = taken(Observed(lease), _IDENTITY, timing, datetime.now(UTC))
        if await client.update_lease(lease, spec) is not None:
            log.info("Took the lease %s/%s; waiting for its holder to end", namespace, name)
            await asyncio.sleep(timing.renew_deadline)
            return
    raise KubeError(0, "Conflict", f"Lease {namespace}/{name} changes too often; run this again")


async def _release(client: Kube, kind: Kind, namespace: str) -> None:
    """Release all objects of a kind; what changed meanwhile is listed again: get is not granted."""
    for _ in range(_TRIES):
        held = [
            obj
            for obj in await client.list(kind, namespace)
            if names.FINALIZER in (obj["metadata"].get("finalizers") or ())
        ]
        if not held:
            return
        for obj in held:
            await _release_one(client, kind, obj)
    raise KubeError(0, "Conflict", f"{kind.plural} change too often; run this again")


async def _release_one(client: Kube, kind: Kind, obj: Obj) -> None:
    try:
        await client.set_finalizer(kind, obj, names.FINALIZER, present=False)
    except KubeError as error:
        if not error.changed_meanwhile:
            raise
    else:
        log.info("Released %s %s", kind.kind, key_of(obj))
