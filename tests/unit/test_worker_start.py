"""What a worker has ready before its first message."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.worker_stage import CONSUMER

if TYPE_CHECKING:
    from harness.worker_stage import Stage

SOURCE = "function handle(body) log{n = body.n} end"


@pytest.mark.parametrize(("concurrency", "loaded"), [(1, 1), (4, 4), (30, 10)])
async def test_some_slots_have_loaded_the_handler_before_the_first_message(
    stage: Stage, concurrency: int, loaded: int
):
    one = (await stage.start(SOURCE, concurrency=1)).app.counters[CONSUMER].lua_memory
    running = await stage.start(SOURCE, concurrency=concurrency)
    assert round(running.app.counters[CONSUMER].lua_memory / one) == loaded
