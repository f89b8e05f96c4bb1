"""Sends what `http_client` asks for, on the event loop; `requests` makes one client per consumer.

An address is looked at when its socket is made: after names were resolved, for each redirect, and for each
way of writing an IP address, so that no name can point elsewhere in between. Nothing is taken from the
environment (proxies, .netrc), and no cookie outlives its call.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import socket
from http.cookies import CookieError
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any

import aiohttp
from yarl import URL

from lunaq_runtime import tls
from lunaq_runtime.entries.parse_fields import EntriesError
from lunaq_runtime.lua.errors import INTERNAL, INVALID, PERMISSION_DENIED, HandlerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lunaq_runtime.entries.model import Tls
    from lunaq_runtime.lua.requests import HttpCall, HttpCalls, HttpRead, Streams

    Address = IPv4Address | IPv6Address

MAX_REDIRECTS = 10
MAX_BATCH_BYTES = 64 * 1024 * 1024
"""Bytes of all bodies of one `request_batch`."""
MAX_STREAMS = 16
"""Open streams of one handler."""
AT_A_TIME = 10
CHUNK = 64 * 1024

ALWAYS_REFUSED = tuple(
    map(
        ip_network,
        (
            "169.254.0.0/16",  # link-local, where clouds tell credentials
            "fe80::/10",
            "fd00:ec2::/32",  # the same of EC2, by IPv6
            "100.100.100.200/32",  # of Alibaba Cloud
            "168.63.129.16/32",  # of Azure
            "192.0.0.192/32",  # of Oracle Cloud
            "0.0.0.0/8",  # this host, by another name
            "::/128",
            "224.0.0.0/4",
            "ff00::/8",
            "255.255.255.255/32",
        ),
    )
)
"""What no configuration allows."""

_NAT64 = ip_network("64:ff9b::/96")


class _RefusedError(Exception):
    """Not an OSError: the connector must not go on to another address."""


def refusal(host: str, allowed: tuple[Any, ...]) -> str | None:
    """Tell why an IP address must not be connected to, or None; `allowed` are networks of private ranges."""
    address = _plain(ip_address(host.partition("%")[0]))
    if any(address in network for network in ALWAYS_REFUSED if network.version == address.version):
        return f"not allowed: IP {address}"
    if address.is_global:
        return None
    if any(address in network for network in allowed if network.version == address.version):
        return None
    return f"not allowed: private IP {address}"


def _plain(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 one stands for."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is None and address.teredo:
            inner = address.teredo[1]
        return inner or address
    return address


class HttpClient:
    """One consumer's client; `allowed` are the private ranges (CIDR) that it may connect to."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self._allowed = tuple(ip_network(text, strict=False) for text in allowed)
        self._session: aiohttp.ClientSession | None = None
        self._loop = asyncio.get_running_loop()
        self._streams: dict[int, tuple[aiohttp.ClientResponse, _Budget]] = {}
        self._numbers = itertools.count(1)

    async def close(self) -> None:
        """Close all connections."""
        self._close_streams(list(self._streams))
        if self._session:
            await self._session.close()

    async def call(self, calls: HttpCalls) -> tuple[Any, ...]:
        """Send one request, or a batch; the reply is what the Lua call returns."""
        if not calls.batch:
            return await self._answer(calls.requests[0], calls, None)
        gate, total = asyncio.Semaphore(AT_A_TIME), _Budget(MAX_BATCH_BYTES)

        async def one(call: HttpCall) -> tuple[Any, ...]:
            async with gate:
                return await self._answer(call, calls, total)

        replies = await asyncio.gather(*map(one, calls.requests))
        responses = {place: reply[0] for place, reply in enumerate(replies, 1) if reply[0] is not None}
        errors = {place: reply[1] for place, reply in enumerate(replies, 1) if reply[1] is not None}
        return responses, errors or None

    async def read(self, request: HttpRead) -> tuple[Any, ...]:
        """Read from a stream: some bytes, or nil at its end."""
        found = self._streams.get(request.stream)
        if found is None:
            return None, HandlerError("the stream is closed", INVALID, retryable=False)
        response, budget = found
        try:
            data = await response.content.read(request.count)
            budget.take(len(data))
        except Exception as error:  # noqa: BLE001 - told to the handler
            self._close_streams([request.stream])
            return None, _failure(error, response.url)
        if not data:
            self._close_streams([request.stream])
            return None, None
        return data, None

    def close_stream(self, stream: int) -> tuple[Any, ...]:
        """Close a stream, again and again if need be."""
        self._close_streams([stream])
        return True, None

    async def _answer(self, call: HttpCall, calls: HttpCalls, total: _Budget | None) -> tuple[Any, ...]:
        url: URL | None = None
        try:
            url = URL(call.url)
            return await self._send(call, url, calls, total), None
        except Exception as error:  # noqa: BLE001 - told to the handler, without a word of Python
            return None, _failure(error, url, call.timeout)

    async def _send(
        self, call: HttpCall, url: URL, calls: HttpCalls, total: _Budget | None
    ) -> dict[str, Any]:
        context: Any = await asyncio.to_thread(_context, call.tls) if call.tls else True
        budget = _Budget(call.max_body)
        response = await self._client().request(
            call.method,
            url.extend_query(call.query) if call.query else url,
            headers=_headers(call),
            cookies=call.cookies,
            data=_data(call),
            ssl=context,
            timeout=aiohttp.ClientTimeout(total=call.timeout),
            max_redirects=MAX_REDIRECTS,
            middlewares=(_checking(calls.can),),
        )
        described = _described(response)
        if call.stream:
            described["stream_id"] = self._keep(response, budget, calls.streams)
            described["body_size"] = -1
            return described
        try:
            body = bytearray()
            async for chunk in response.content.iter_chunked(CHUNK):
                budget.take(len(chunk))
                if total:
                    total.take(len(chunk))
                body += chunk
        except BaseException:
            response.close()
            raise
        response.release()
        described["body"] = bytes(body)
        described["body_size"] = len(body)
        return described

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                use_dns_cache=False, happy_eyeballs_delay=None, socket_factory=self._socket
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "lunaq"},
                trust_env=False,
            )
        return self._session

    def _socket(self, info: Any) -> socket.socket:
        family, kind, protocol, _, place = info
        if refused := refusal(str(place[0]), self._allowed):
            raise _RefusedError(refused)
        return socket.socket(family, kind, protocol)

    def _keep(self, response: aiohttp.ClientResponse, budget: _Budget, streams: Streams) -> int:
        if len(streams.open) >= MAX_STREAMS:
            response.close()
            raise HandlerError(f"{MAX_STREAMS} streams are open: close some", INVALID, retryable=False)
        number = next(self._numbers)
        self._streams[number] = response, budget
        streams.open.append(number)
        streams.close = functools.partial(self._close_soon, streams.open)
        return number

    def _close_soon(self, numbers: list[int]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._close_streams, numbers)
        except RuntimeError:
            return  # the loop is closed, and with it every connection

    def _close_streams(self, numbers: list[int]) -> None:
        for number in numbers:
            if found := self._streams.pop(number, None):
                found[0].close()


class _Budget:
    """Bytes that may still come; None: any number."""

    def __init__(self, limit: int | None) -> None:
        self._limit = self._left = limit

    def take(self, count: int) -> None:
        if self._left is None:
            return
        self._left -= count
        if self._left < 0:
            raise HandlerError(
                f"the response has more than {self._limit} bytes: raise max_response_body, or stream it",
                INTERNAL,
                retryable=False,
                details={"reason": "too_large"},
            )


def _checking(can: Callable[[str], bool]) -> Any:
    """Ask the policy at each hop; the address is looked at when its socket is made."""

    async def check(request: Any, handler: Any) -> Any:
        if not can(str(request.url)):
            raise _RefusedError(f"not allowed: http_client.request on {request.url.origin()}")
        return await handler(request)

    return check


@functools.lru_cache(maxsize=16)
def _context(settings: Tls) -> Any:
    return tls.context(settings)


def _headers(call: HttpCall) -> dict[str, str]:
    if call.auth is None:
        return call.headers
    return {**call.headers, "Authorization": aiohttp.encode_basic_auth(*call.auth, encoding="utf-8")}


def _data(call: HttpCall) -> Any:
    if call.files:
        form = aiohttp.FormData(call.form or {}, default_to_multipart=True)
        for file in call.files:
            form.add_field(
                file.name, file.content, filename=file.filename, content_type=file.content_type or None
            )
        return form
    return call.form if call.form is not None else call.body


def _described(response: aiohttp.ClientResponse) -> dict[str, Any]:
    headers: dict[str, str] = {}
    for name, value in response.headers.items():
        key = "-".join(part.capitalize() for part in name.split("-"))
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return {
        "status_code": response.status,
        "url": str(response.url),
        "headers": headers,
        "cookies": {name: morsel.value for name, morsel in response.cookies.items()},
    }


def _failure(error: Exception, url: URL | None, timeout: float = 0.0) -> HandlerError:
    """Turn what the client raised into the handler's error (lua-api.md 3.10), in our own words."""
    where = f"{url.host}:{url.port}" if url is not None and url.host else "the server"
    if isinstance(error, HandlerError):
        return error
    if isinstance(error, (_RefusedError, EntriesError)):
        kind = PERMISSION_DENIED if isinstance(error, _RefusedError) else INVALID
        return HandlerError(str(error), kind, retryable=False)
    if isinstance(error, aiohttp.ClientConnectorError) and type(error) is aiohttp.ClientConnectorError:
        reason = (error.os_error.strerror or "no connection").partition(" (")[0][:80]
        return _failed("connect", f"cannot connect to {where}: {reason}")
    for kinds, reason, text in _FAILURES:
        if isinstance(error, kinds):
            told = text.format(where=where, timeout=f"{timeout:g} s" if timeout else "its time")
            if not reason:
                return HandlerError(told, INVALID, retryable=False)
            return _failed(reason, told, retryable=reason != "redirects")
    return HandlerError(f"{where}: the request failed", INTERNAL, retryable=False)


_FAILURES: tuple[tuple[tuple[type[Exception], ...], str, str], ...] = (
    ((TimeoutError,), "timeout", "{where}: no answer within {timeout}"),
    ((aiohttp.TooManyRedirects,), "redirects", f"{{where}}: more than {MAX_REDIRECTS} redirects"),
    ((aiohttp.NonHttpUrlRedirectClientError,), "redirects", "{where}: it redirects to no http:// URL"),
    ((aiohttp.InvalidURL,), "", "the URL, or the one redirected to, is not valid"),
    ((aiohttp.ClientConnectorDNSError,), "dns", "{where}: the name cannot be resolved"),
    (
        (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError),
        "tls",
        "{where}: the TLS connection failed, or its certificate is not trusted",
    ),
    (
        (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, ConnectionError),
        "connection",
        "{where}: the connection was closed before the whole response came",
    ),
    ((aiohttp.ClientError, OSError), "protocol", "{where}: the request failed"),
    ((ValueError, TypeError, LookupError, CookieError), "", "the request is not valid: look at its headers"),
)
"""What the client raises, the first that fits: our reason (empty: an Invalid error) and text."""


def _failed(reason: str, text: str, *, retryable: bool = True) -> HandlerError:
    return HandlerError(text, INTERNAL, retryable=retryable, details={"reason": reason})
