"""A reverse proxy on 127.0.0.1 that passes everything on and writes down what was asked.

Called by tests that count requests where they arrive (at an API server, at a management API), or compare
the rights that a client uses with those that it has.
"""

import asyncio
import base64
import contextlib
import ssl
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import yaml
from aiohttp import web

_HOP = {
    "host",
    "connection",
    "keep-alive",
    "transfer-encoding",
    "content-length",
    "content-encoding",
    "upgrade",
}
_CHUNK = 65_536


class Asked(NamedTuple):
    """One request, its answer's status, and when that came (monotonic)."""

    method: str
    path: str
    query: dict[str, str]
    status: int
    at: float


def context_of(kubeconfig: Path) -> tuple[str, ssl.SSLContext]:
    """Give the server of a kubeconfig, and a TLS context that trusts it (without its client's identity)."""
    cluster = yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]
    context = ssl.create_default_context()
    if data := cluster.get("certificate-authority-data"):
        context.load_verify_locations(cadata=base64.b64decode(data).decode())
    elif file := cluster.get("certificate-authority"):
        context.load_verify_locations(cafile=str(kubeconfig.parent / file))
    return cluster["server"], context


class RecordingProxy:
    """Listens from `start` to `stop`.

    Args:
        target: the URL that requests are passed on to.
        tls: how to trust it, if it is https.

    Attributes:
        asked: all requests so far, in the order in which their answers began.
        url: where this listens.
    """

    def __init__(self, target: str, tls: ssl.SSLContext | None = None) -> None:
        self._target = target.rstrip("/")
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="recording-proxy", daemon=True)
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None
        self._cut = False
        self._open: set[asyncio.Transport] = set()
        self.asked: list[Asked] = []
        self.url = ""

    def start(self) -> "RecordingProxy":
        """Listen on a free port."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)
        return self

    def stop(self) -> None:
        """Stop listening, and end what is still passed on."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Break all connections, and answer 503 to everything, until `mend`."""

        def break_all() -> None:
            self._cut = True
            for transport in list(self._open):
                transport.abort()

        self._loop.call_soon_threadsafe(break_all)

    def mend(self) -> None:
        """Pass on again."""
        self._cut = False

    def kubeconfig(self, token: str, folder: Path) -> Path:
        """Write a kubeconfig that leads here, for the bearer of a token."""
        config: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": {"server": self.url}}],
            "users": [{"name": "bearer", "user": {"token": token}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "bearer"}}],
            "current-context": "here",
        }
        path = Path(tempfile.mkdtemp(dir=folder)) / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    async def _start(self) -> None:
        connector = aiohttp.TCPConnector(limit=0, ssl=self._tls if self._tls is not None else True)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
        )
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._handle)
        # Else a watch whose client is gone would be read on.
        options = {"handler_cancellation": True, "shutdown_timeout": 0.1}
        self._runner = web.AppRunner(app, access_log=None, **options)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _stop(self) -> None:
        assert self._runner is not None
        assert self._session is not None
        await self._session.close()
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        if transport is None or self._cut:
            return web.Response(status=503, text="cut by the test")
        self._open.add(transport)
        try:
            return await self._pass_on(request)
        finally:
            self._open.discard(transport)

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        assert self._session is not None
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        url = self._target + request.raw_path
        async with self._session.request(
            request.method,
            aiohttp.client.URL(url, encoded=True),
            headers=headers,
            data=await request.read() or None,
            skip_auto_headers=("Content-Type", "User-Agent"),
            allow_redirects=False,
        ) as answer:
            self.asked.append(
                Asked(request.method, request.path, dict(request.query), answer.status, time.monotonic())
            )
            passed = web.StreamResponse(status=answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in _HOP - {"content-encoding"}:
                    passed.headers[name] = value
            with contextlib.suppress(ConnectionError):  # the client had enough, as of a watch
                await passed.prepare(request)
                async for chunk in answer.content.iter_any():
                    await passed.write(chunk)
                await passed.write_eof()
            return passed
