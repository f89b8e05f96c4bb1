"""Probes hear what the app knows of its progress, and nothing else."""

from __future__ import annotations

import aiohttp
import pytest

from lunaq_runtime.health import HealthServer


class State:
    healthy = True
    ready = False


async def fetch(port: int, path: str) -> tuple[int, str, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}{path}") as response,
    ):
        return response.status, await response.text(), response.headers["Content-Type"]


async def test_probes_follow_the_app_and_metrics_are_served_as_text() -> None:
    state = State()
    server = HealthServer(
        healthy=lambda: state.healthy, ready=lambda: state.ready, metrics=lambda: b"lunaq_ready 0\n"
    )
    port = await server.start("127.0.0.1", 0)
    try:
        assert (await fetch(port, "/healthz"))[:2] == (200, "ok\n")
        assert (await fetch(port, "/readyz"))[:2] == (503, "not ready\n")
        state.healthy, state.ready = False, True
        assert (await fetch(port, "/healthz"))[:2] == (503, "no progress\n")
        assert (await fetch(port, "/readyz"))[:2] == (200, "ok\n")
        assert await fetch(port, "/metrics") == (
            200,
            "lunaq_ready 0\n",
            "text/plain; version=0.0.4; charset=utf-8",
        )
        assert (await fetch(port, "/"))[0] == 404
    finally:
        await server.stop()


async def test_a_taken_port_is_an_error_and_stopping_frees_it() -> None:
    first, second = (
        HealthServer(healthy=lambda: True, ready=lambda: True, metrics=lambda: b"") for _ in range(2)
    )
    port = await first.start("127.0.0.1", 0)
    with pytest.raises(OSError, match="address already in use"):
        await second.start("127.0.0.1", port)
    await second.stop()
    await first.stop()
    assert await second.start("127.0.0.1", port) == port
    await second.stop()
