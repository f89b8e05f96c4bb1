"""The HTTP side of a pod: `/healthz`, `/readyz` and `/metrics`; started by `main`.

Healthy means progress, not an open port: the answer comes from the event loop that does the work, so a loop
that hangs does not answer, and what it says is what the app knows of its own progress.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable

TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"


class HealthServer:
    """Serves three paths; `healthy` and `ready` answer at once, `metrics` renders the text format."""

    def __init__(
        self, *, healthy: Callable[[], bool], ready: Callable[[], bool], metrics: Callable[[], bytes]
    ) -> None:
        self._healthy = healthy
        self._ready = ready
        self._metrics = metrics
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port: with 0, a free one. OSError where it is taken."""
        app = web.Application()
        app.router.add_get("/healthz", self._serve_health)
        app.router.add_get("/readyz", self._serve_ready)
        app.router.add_get("/metrics", self._serve_metrics)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        address: tuple[str, int] = self._runner.addresses[0]
        return address[1]

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner:
            await self._runner.cleanup()

    async def _serve_health(self, _request: web.Request) -> web.Response:
        return _answer(self._healthy(), "no progress")

    async def _serve_ready(self, _request: web.Request) -> web.Response:
        return _answer(self._ready(), "not ready")

    async def _serve_metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._metrics(), headers={"Content-Type": TEXT_FORMAT})


def _answer(good: bool, otherwise: str) -> web.Response:  # noqa: FBT001 - one answer, yes or no
    return web.Response(text="ok\n") if good else web.Response(status=503, text=f"{otherwise}\n")
