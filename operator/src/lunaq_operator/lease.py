"""Leader election by a Lease: all replicas watch, only the leader writes; run by `main`.

Our own, because the elector in `kubernetes.aio` 37.0.2 dies without a Lease and keeps leading on an API
that hangs (design.md section 6). The rules are client-go's: clocks of other machines are not trusted, a
lease counts as expired once *we* have seen it unchanged for its duration.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from lunaq_operator.store import Obj

log = logging.getLogger(__name__)


class LeaseLost(Exception):  # noqa: N818 - a fact that ends the process, not a mistake
    """We led and could not renew in time; somebody else may lead by now."""


class Leases(Protocol):
    """What the elector needs of the API; `kube` implements it."""

    async def get_lease(self, namespace: str, name: str) -> Obj | None:
        """Return the Lease, None where there is none."""

    async def create_lease(self, namespace: str, name: str, spec: dict[str, Any]) -> Obj | None:
        """Create it; None where somebody was faster."""

    async def update_lease(self, lease: Obj, spec: dict[str, Any]) -> Obj | None:
        """Replace its spec if its resourceVersion is still that of `lease`; None where it is not."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds: `duration` until others may take over, `renew_deadline` until we give up, `retry` between."""

    duration: float = 10.0
    renew_deadline: float = 6.0
    retry: float = 2.0


@dataclass(frozen=True, slots=True)
class Observed:
    """A Lease as we last saw it change, and when that was on our own monotonic clock."""

    lease: Obj | None = None
    at: float = 0.0

    def see(self, lease: Obj | None, now: float) -> Observed:
        """Take a new reading; the time moves only if the lease changed."""
        if self.at and _spec(lease) == _spec(self.lease):
            return Observed(lease, self.at)
        return Observed(lease, now)


def may_take(observed: Observed, identity: str, now: float) -> bool:
    """Decide whether `identity` may write itself into the Lease: its own, free, or expired."""
    spec = _spec(observed.lease)
    holder = spec.get("holderIdentity") or ""
    if holder in ("", identity):
        return True
    return now - observed.at > float(spec.get("leaseDurationSeconds") or 0)


def taken(observed: Observed, identity: str, timing: Timing, now: datetime) -> dict[str, Any]:
    """Return the spec with which `identity` takes or renews the Lease."""
    old = _spec(observed.lease)
    stamp = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    renewal = old.get("holderIdentity") == identity
    return {
        "holderIdentity": identity,
        "leaseDurationSeconds": math.ceil(timing.duration),
        "acquireTime": old.get("acquireTime") or stamp if renewal else stamp,
        "renewTime": stamp,
        "leaseTransitions": int(old.get("leaseTransitions") or 0) + (0 if renewal else 1),
    }


class Elector:
    """Takes the Lease, keeps it, and says so through `leading`."""

    def __init__(
        self,
        leases: Leases,
        namespace: str,
        name: str,
        identity: str,
        *,
        timing: Timing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._leases = leases
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._timing = timing or Timing()
        self._clock = clock
        self._observed = Observed()
        self.leading = asyncio.Event()

    async def run(self) -> None:
        """Try for the Lease until it is ours, then renew it; LeaseLost once that failed for too long."""
        while not await self._attempt(self._timing.renew_deadline):  # noqa: ASYNC110 - no event is set
            await asyncio.sleep(self._timing.retry)
        renewed = self._clock()
        log.info("Leading as %s", self._identity)
        self.leading.set()
        try:
            while True:
                await asyncio.sleep(self._timing.retry)
                left = renewed + self._timing.renew_deadline - self._clock()
                started = self._clock()
                if left > 0 and await self._attempt(left):
                    renewed = started
                elif self._clock() - renewed >= self._timing.renew_deadline or self._somebody_else():
                    raise LeaseLost(f"Lease {self._namespace}/{self._name} was not renewed in time")
        finally:
            self.leading.clear()

    async def release(self) -> None:
        """Give the Lease back at a clean shutdown, so that the next leader need not wait."""
        lease = self._observed.lease
        if lease is None or self._somebody_else():
            return
        spec = {**_spec(lease), "holderIdentity": "", "leaseDurationSeconds": 1}
        try:
            async with asyncio.timeout(self._timing.retry):
                await self._leases.update_lease(lease, spec)
        except Exception as error:  # noqa: BLE001 - it expires by itself, shutting down goes on
            log.warning("Could not release the lease: %s", error)

    def _somebody_else(self) -> bool:
        return _spec(self._observed.lease).get("holderIdentity") != self._identity

    async def _attempt(self, seconds: float) -> bool:
        """Take or renew once; a call that hangs for `seconds` counts as one that failed."""
        try:
            async with asyncio.timeout(seconds):
                return await self._take()
        except TimeoutError:
            log.warning("The API server did not answer about the lease within %.1f s", seconds)
        except Exception as error:  # noqa: BLE001 - whatever it is, we have not got the lease
            log.warning("Could not take or renew the lease: %s", error)
        return False

    async def _take(self) -> bool:
        if self._observed.lease is None or self._somebody_else():
            lease = await self._leases.get_lease(self._namespace, self._name)
            self._observed = self._observed.see(lease, self._clock())
        if not may_take(self._observed, self._identity, self._clock()):
            return False
        spec = taken(self._observed, self._identity, self._timing, datetime.now(UTC))
        if self._observed.lease is None:
            written = await self._leases.create_lease(self._namespace, self._name, spec)
        else:
            written = await self._leases.update_lease(self._observed.lease, spec)
        if written is None:  # somebody was faster: look again next time
            lease = await self._leases.get_lease(self._namespace, self._name)
            self._observed = self._observed.see(lease, self._clock())
            return False
        self._observed = Observed(written, self._clock())
        return True


def _spec(lease: Obj | None) -> dict[str, Any]:
    return dict((lease or {}).get("spec") or {})
