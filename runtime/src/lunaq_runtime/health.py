"""The HTTP side of a pod: `/healthz`, `/readyz` and `/metrics`; started by `serve`.

Healthy means progress, not an open port: the answer comes from the event loop that does the work, so a loop
that hangs does not answer, and what it says is what the app knows of its own progress. Three paths that are
read need no HTTP library, whose import would take a fifth of a pod's start (250 ms of aiohttp's).
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"

PATIENCE = 5.0
"""Seconds within which a client has to say what it wants, and to take the answer."""

_LONGEST_HEAD = 16 * 1024
_PLAIN = "text/plain; charset=utf-8"


class HealthServer:
    """Serves three paths; `healthy` and `ready` answer at once, `metrics` renders the text format."""

    def __init__(
        self, *, healthy: Callable[[], bool], ready: Callable[[], bool], metrics: Callable[[], bytes]
    ) -> None:
        self._healthy = healthy
        self._ready = ready
        self._metrics = metrics
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port: with 0, a free one. OSError where it is taken."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=_LONGEST_HEAD)
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    async def stop(self) -> None:
        """Stop listening, and answer nobody any more."""
        if self._server:
            self._server.close()
            for client in self._clients:
                client.close()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close: a probe or a scrape comes every few seconds, and needs no more."""
        self._clients.add(writer)
        try:
            async with asyncio.timeout(PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._response(head))
                await writer.drain()
        except asyncio.LimitOverrunError:
            writer.write(_answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, b"the request is too long\n"))
        except (TimeoutError, asyncio.IncompleteReadError, OSError):
            pass  # nobody waits for an answer
        finally:
            self._clients.discard(writer)
            writer.close()

    def _response(self, head: bytes) -> bytes:
        try:
            method, target, _ = head.split(b"\r\n", 1)[0].decode("ascii").split(" ")
        except ValueError:
            return _answer(HTTPStatus.BAD_REQUEST, b"this is not HTTP\n")
        if method not in ("GET", "HEAD"):
            return _answer(
                HTTPStatus.METHOD_NOT_ALLOWED, b"only GET is served here\n", "Allow: GET, HEAD\r\n"
            )
        answer = self._page(target.partition("?")[0])
        return answer if method == "GET" else answer[: answer.index(b"\r\n\r\n") + 4]

    def _page(self, path: str) -> bytes:
        match path:
            case "/healthz":
                return _state(self._healthy(), b"no progress\n")
            case "/readyz":
                return _state(self._ready(), b"not ready\n")
            case "/metrics":
                return _answer(HTTPStatus.OK, self._metrics(), kind=TEXT_FORMAT)
        return _answer(HTTPStatus.NOT_FOUND, b"there is /healthz, /readyz and /metrics\n")


def _state(good: bool, otherwise: bytes) -> bytes:  # noqa: FBT001 - one answer, yes or no
    return _answer(HTTPStatus.OK, b"ok\n") if good else _answer(HTTPStatus.SERVICE_UNAVAILABLE, otherwise)


def _answer(status: HTTPStatus, body: bytes, more: str = "", kind: str = _PLAIN) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        f"{more}Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
