"""Probes hear what the app knows of its progress, and nothing else."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import aiohttp
import pytest

from lunaq_runtime import health
from lunaq_runtime.health import HealthServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


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


async def ask(port: int, *chunks: bytes) -> bytes:
    """Say something over a bare socket, and read until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for chunk in chunks:
        writer.write(chunk)
        await writer.drain()
    answer = await reader.read()
    writer.close()
    return answer


@pytest.fixture
async def port() -> AsyncIterator[int]:
    server = HealthServer(healthy=lambda: True, ready=lambda: True, metrics=lambda: b"m 1\n")
    yield await server.start("127.0.0.1", 0)
    await server.stop()


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: pod\r\n\r\n", b"200 OK"),
        (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", b"200 OK"),
        (b"POST /healthz HTTP/1.1\r\n\r\n", b"405 Method Not Allowed"),
        (b"\x16\x03\x01 hello\r\n\r\n", b"400 Bad Request"),
        (b"GET  HTTP\r\n\r\n", b"404 Not Found"),
        (b"nonsense\r\n\r\n", b"400 Bad Request"),
        (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\n\r\n", b"431 Request Header Fields Too Large"),
    ],
)
async def test_whatever_is_asked_gets_one_answer_and_the_end(port: int, said: bytes, status: bytes) -> None:
    assert (await ask(port, said)).startswith(b"HTTP/1.1 " + status + b"\r\n")


async def test_a_head_alone_is_sent_where_only_that_is_asked_for(port: int) -> None:
    answer = await ask(port, b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert b"Content-Length: 4\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


async def test_a_client_that_says_nothing_is_let_go(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PATIENCE", 0.05)
    assert await ask(port, b"GET /heal") == b""
    assert (await ask(port, b"GET /heal", b"thz HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_stopping_does_not_wait_for_who_is_still_connected() -> None:
    server = HealthServer(healthy=lambda: True, ready=lambda: True, metrics=lambda: b"")
    port = await server.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(60):
        await server.stop()
        with suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()
