"""Leader election: who may take the Lease, and when a leader gives up."""

import asyncio
from datetime import UTC, datetime

import pytest

from lunaq_operator.lease import Elector, LeaseLost, Observed, Timing, may_take, taken

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
QUICK = Timing(duration=1, renew_deadline=0.2, retry=0.02)


def lease(holder, renewed="r1", seconds=10, transitions=3):
    spec = {
        "holderIdentity": holder,
        "renewTime": renewed,
        "leaseDurationSeconds": seconds,
        "leaseTransitions": transitions,
        "acquireTime": "earlier",
    }
    return {"metadata": {"name": "lease", "resourceVersion": "1"}, "spec": spec}


class Api:
    """Leases as an API server keeps them; `hang` makes every call hang, `fail` raise."""

    def __init__(self, lease=None) -> None:
        self.lease = lease
        self.version = 1
        self.hang = False
        self.fail = False

    async def _call(self):
        if self.hang:
            await asyncio.Event().wait()
        if self.fail:
            raise OSError("no")

    async def get_lease(self, _namespace, _name):
        await self._call()
        return self.lease

    async def create_lease(self, _namespace, name, spec):
        await self._call()
        if self.lease is not None:
            return None
        return self._store(name, spec)

    async def update_lease(self, lease, spec):
        await self._call()
        if self.lease is None or lease["metadata"]["resourceVersion"] != str(self.version):
            return None
        return self._store(lease["metadata"]["name"], spec)

    def _store(self, name, spec):
        self.version += 1
        self.lease = {"metadata": {"name": name, "resourceVersion": str(self.version)}, "spec": spec}
        return self.lease


async def eventually(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.005)


def test_a_free_lease_and_ones_own_may_be_taken():
    assert may_take(Observed(None, 5), "me", 5)
    assert may_take(Observed(lease(""), 5), "me", 5)
    assert may_take(Observed(lease("me"), 5), "me", 5)


def test_anothers_lease_may_be_taken_only_when_it_was_seen_unchanged_for_its_duration():
    seen = Observed().see(lease("other"), 100)
    assert not may_take(seen, "me", 110)
    assert may_take(seen, "me", 110.1)
    again = seen.see(lease("other"), 109)
    assert may_take(again, "me", 110.1)
    renewed = seen.see(lease("other", renewed="r2"), 109)
    assert not may_take(renewed, "me", 118)


def test_taking_counts_a_transition_and_renewing_does_not():
    mine = taken(Observed(lease("me"), 1), "me", Timing(), NOW)
    assert (mine["leaseTransitions"], mine["acquireTime"]) == (3, "earlier")
    new = taken(Observed(lease("other"), 1), "me", Timing(), NOW)
    assert (new["leaseTransitions"], new["acquireTime"]) == (4, "2026-01-02T03:04:05.678901Z")
    assert new["leaseDurationSeconds"] == 10


async def test_without_a_lease_one_is_made():
    api = Api()
    elector = Elector(api, "ns", "lease", "me", timing=QUICK)
    running = asyncio.create_task(elector.run())
    await eventually(elector.leading.is_set)
    assert api.lease["spec"]["holderIdentity"] == "me"
    running.cancel()


async def test_a_standby_waits_for_a_living_leader_and_takes_over_a_dead_one():
    api = Api()
    first = Elector(api, "ns", "lease", "first", timing=QUICK)
    second = Elector(api, "ns", "lease", "second", timing=QUICK)
    leading = asyncio.create_task(first.run())
    await eventually(first.leading.is_set)
    waiting = asyncio.create_task(second.run())
    before = api.version
    await eventually(lambda: api.version > before + 5)
    assert not second.leading.is_set()
    leading.cancel()
    await eventually(second.leading.is_set)
    waiting.cancel()


@pytest.mark.parametrize("trouble", ["hang", "fail"])
async def test_a_leader_whose_api_hangs_or_fails_gives_up_in_time(trouble):
    api = Api()
    elector = Elector(api, "ns", "lease", "me", timing=QUICK)
    running = asyncio.create_task(elector.run())
    await eventually(elector.leading.is_set)
    setattr(api, trouble, True)
    with pytest.raises(LeaseLost):
        async with asyncio.timeout(10):
            await running
    assert not elector.leading.is_set()


async def test_a_short_trouble_costs_nothing():
    api = Api()
    elector = Elector(api, "ns", "lease", "me", timing=Timing(duration=60, renew_deadline=30, retry=0.01))
    running = asyncio.create_task(elector.run())
    await eventually(elector.leading.is_set)
    api.fail = True
    await asyncio.sleep(0.05)
    api.fail = False
    before = api.version
    await eventually(lambda: api.version > before)
    assert not running.done()
    running.cancel()


async def test_a_leader_that_was_overtaken_gives_up():
    api = Api()
    elector = Elector(api, "ns", "lease", "me", timing=QUICK)
    running = asyncio.create_task(elector.run())
    await eventually(elector.leading.is_set)
    api._store("lease", lease("other")["spec"])
    with pytest.raises(LeaseLost):
        async with asyncio.timeout(10):
            await running


async def test_a_clean_stop_gives_the_lease_back():
    api = Api()
    elector = Elector(api, "ns", "lease", "me", timing=QUICK)
    running = asyncio.create_task(elector.run())
    await eventually(elector.leading.is_set)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await elector.release()
    assert api.lease["spec"]["holderIdentity"] == ""
