"""Answers the kubelet's probes: /healthz while the watches live, /readyz once all is listed; run by `main`.

A standby replica is ready: it has everything at hand to take over. That the event loop turns is proven by
the answer itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from lunaq_operator.engine import Engine


async def serve(engine: Engine, port: int, silence_limit: float) -> web.AppRunner:
    """Start answering on `port` (0: any); stop it by the runner's `cleanup`."""

    async def healthz(_: web.Request) -> web.Response:
        age = engine.lists.age()
        quiet = engine.lists.quiet(silence_limit)
        return _answer(not quiet, {"lastWatchDataSeconds": round(age, 1), "silent": quiet})

    async def readyz(_: web.Request) -> web.Response:
        missing = engine.store.missing()
        return _answer(not missing, {"notListed": missing, "working": engine.working, **engine.figures})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner


def _answer(well: bool, details: dict[str, Any]) -> web.Response:  # noqa: FBT001 - one private caller pair
    return web.json_response({"ok": well, **details}, status=200 if well else 503)
