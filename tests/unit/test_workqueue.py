"""The work queue: once at a time, again after failures, in good order."""

import asyncio
import contextlib
import logging

import pytest

from lunaq_operator.workqueue import Backoff, Retry, WorkQueue


@contextlib.asynccontextmanager
async def running(queue):
    task = asyncio.create_task(queue.run())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class Work:
    """Records runs, and holds each until it is let go."""

    def __init__(self, *, held=False) -> None:
        self.started = []
        self.active = []
        self.most = {}
        self.gate = asyncio.Event()
        self.failures = {}
        self.again = {}
        if not held:
            self.gate.set()

    async def __call__(self, key) -> float | None:
        self.started.append(key)
        self.active.append(key)
        self.most[key] = max(self.most.get(key, 0), self.active.count(key))
        try:
            await self.gate.wait()
            if self.failures.get(key, 0) > 0:
                self.failures[key] -= 1
                raise Retry("not now")
            return self.again.pop(key, None)
        finally:
            self.active.remove(key)

    async def until(self, condition):
        async with asyncio.timeout(10):
            while not condition(self):  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0)


async def test_a_key_that_waits_is_not_added_twice():
    work = Work()
    queue = WorkQueue(work)
    for key in ("a", "a", "b", "a"):
        queue.add(key)
    async with running(queue):
        await work.until(lambda work: len(work.started) == 2)
        await work.until(lambda _: len(queue) == 0)
    assert work.started == ["a", "b"]


async def test_a_key_never_runs_twice_at_once_and_runs_again_if_added_meanwhile():
    work = Work(held=True)
    queue = WorkQueue(work, workers=4)
    queue.add("a")
    async with running(queue):
        await work.until(lambda work: work.started == ["a"])
        queue.add("a")
        queue.add("a")
        queue.add("b")
        await work.until(lambda work: "b" in work.started)
        assert work.started.count("a") == 1
        work.gate.set()
        await work.until(lambda work: work.started.count("a") == 2)
        await work.until(lambda _: len(queue) == 0)
    assert work.most["a"] == 1
    assert work.started.count("a") == 2


async def test_what_is_urgent_goes_first():
    work = Work()
    queue = WorkQueue(work, workers=1)
    queue.add("a")
    queue.add("b")
    queue.add("now", urgent=True)
    async with running(queue):
        await work.until(lambda work: len(work.started) == 3)
    assert work.started[0] == "now"


async def test_a_failure_comes_again_and_a_success_forgets_it():
    work = Work()
    work.failures["a"] = 3
    queue = WorkQueue(work, backoff=Backoff(base=0.001, cap=0.01))
    queue.add("a")
    async with running(queue):
        await work.until(lambda work: len(work.started) == 4)
        await work.until(lambda _: len(queue) == 0)
    assert queue._failures == {}


async def test_work_may_ask_to_be_run_again_later():
    work = Work()
    work.again["a"] = 0.001
    queue = WorkQueue(work)
    queue.add("a")
    async with running(queue):
        await work.until(lambda work: work.started == ["a", "a"])


async def test_being_added_replaces_the_wish_for_later():
    work = Work()
    queue = WorkQueue(work)
    queue.add_after("a", 1000)
    queue.add("a")
    assert queue._timers == {}


async def test_an_unknown_error_is_logged_with_its_traceback_and_does_not_end_the_queue(caplog):
    runs = []

    async def work(key):
        runs.append(key)
        if key == "bad":
            raise ZeroDivisionError("bug")

    queue = WorkQueue(work, workers=1, backoff=Backoff(base=1000))
    queue.add("bad")
    queue.add("good")
    with caplog.at_level(logging.WARNING):
        async with running(queue), asyncio.timeout(10):
            while runs != ["bad", "good"]:  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0)
    assert caplog.records[0].exc_info


async def test_stopping_cancels_what_runs_and_drops_the_timers():
    work = Work(held=True)
    queue = WorkQueue(work)
    queue.add("a")
    queue.add_after("later", 1000)
    async with running(queue):
        await work.until(lambda work: work.active == ["a"])
    assert work.active == []
    assert queue._timers == {}


@pytest.mark.parametrize(("failures", "most"), [(1, 0.2), (2, 0.4), (5, 3.2), (40, 60.0)])
def test_pauses_double_up_to_a_cap_and_half_of_each_is_chance(failures, most):
    assert Backoff().delay(failures, 0.0) == pytest.approx(most / 2)
    assert Backoff().delay(failures, 1.0) == pytest.approx(most)
