"""The `http_client` module against a server on loopback (lua-api.md 3.10)."""

from __future__ import annotations

import asyncio
import functools
import json
import socket
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from lua_driver import IDENTITY, FakeHost, consumer_of, printed_by

from lunaq_runtime.brokers.memory import MemoryBroker
from lunaq_runtime.entries.model import Handler
from lunaq_runtime.entries.parse import EntriesError
from lunaq_runtime.ids import Id
from lunaq_runtime.lua.errors import HandlerError
from lunaq_runtime.lua.requests import Finished
from lunaq_runtime.lua.state import LuaState, MessageContext
from lunaq_runtime.worker.counters import Counters
from lunaq_runtime.worker.http_client import refusal
from lunaq_runtime.worker.requests import Requests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NEVER = web.AppKey("never", asyncio.Event)
LOOPBACK = ("127.0.0.0/8", "::1/128")


async def echo(request: web.Request) -> web.Response:
    """Tell what came."""
    if request.content_type == "multipart/form-data":
        body: Any = [
            [part.name, part.filename, part.headers.get("Content-Type"), (await part.read()).decode()]
            async for part in await request.multipart()
        ]
    else:
        body = (await request.read()).decode()
    seen = {
        "method": request.method,
        "path": request.path_qs,
        "body": body,
        "type": request.headers.get("Content-Type"),
        "auth": request.headers.get("Authorization"),
        "x": request.headers.get("X-Test"),
        "agent": request.headers.get("User-Agent"),
        "cookies": dict(request.cookies),
    }
    answer = web.Response(text=json.dumps(seen), headers={"x-answer": "yes"})
    answer.headers.add("x-many", "1")
    answer.headers.add("x-many", "2")
    answer.set_cookie("session", "s1")
    return answer


async def status(request: web.Request) -> web.Response:
    return web.Response(status=int(request.match_info["code"]), text="as asked")


async def redirect(request: web.Request) -> web.Response:
    raise web.HTTPFound(request.query["to"])


async def loop(_request: web.Request) -> web.Response:
    raise web.HTTPFound("/loop")


async def endless(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    while True:
        await answer.write(b"x" * 65536)


async def cut(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Length": "1000"})
    await answer.prepare(request)
    await answer.write(b"only this")
    assert request.transport
    request.transport.close()
    return answer


async def never(request: web.Request) -> web.Response:
    await request.app[NEVER].wait()
    return web.Response()


async def bomb(_request: web.Request) -> web.Response:
    answer = web.Response(body=b"0" * (64 * 1024 * 1024))
    answer.enable_compression(web.ContentCoding.gzip)
    return answer


class Server:
    """Where the server listens, and what has been asked of it."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.port = port


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    app = web.Application()
    app[NEVER] = asyncio.Event()
    app.router.add_route("*", "/echo", echo)
    for path, handler in (
        ("/status/{code}", status),
        ("/redirect", redirect),
        ("/loop", loop),
        ("/endless", endless),
        ("/cut", cut),
        ("/never", never),
        ("/bomb", bomb),
    ):
        app.router.add_get(path, handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield Server(runner.addresses[0][1])
    app[NEVER].set()
    await runner.cleanup()


async def run(
    source: str,
    server: Server | None = None,
    *,
    ranges: tuple[str, ...] = LOOPBACK,
    host: FakeHost | None = None,
) -> list[str]:
    """Run a handler with `url` in its body as the worker does, and return what it printed."""
    host = host or FakeHost()
    handler = Handler(
        "app.lua", f"function handle(url) {source}\nend", modules=("http_client", "json"), timeout=60.0
    )
    state = LuaState(handler, host, identity=IDENTITY)
    requests = Requests(MemoryBroker(), Id("app", "memory"), {}, Counters(), ranges)
    invocation = state.start(MessageContext("1"), server.url if server else "")
    outcome = await asyncio.to_thread(invocation.step)
    try:
        while not isinstance(outcome, Finished):
            reply = await requests.execute(outcome)
            outcome = await asyncio.to_thread(functools.partial(invocation.step, reply))
    finally:
        await requests.close()
    assert outcome.error is None, outcome.error
    return host.printed()


@pytest.mark.parametrize("method", ["get", "delete", "post", "put", "patch"])
async def test_each_method_sends_what_its_options_say(method: str, server: Server):
    source = f"""
        local r, err = http_client.{method}(url .. '/echo?a=1', {{
          query = {{b = 'x y', c = 5}}, headers = {{['X-Test'] = 'yes'}}, cookies = {{k = 'v'}},
          body = 'data', auth = {{user = 'u', pass = 'p'}},
        }})
        print(err, r.status_code, r.url == url .. '/echo?a=1&b=x+y&c=5', r.body_size == #r.body, r.stream)
        print(r.headers['X-Answer'], r.headers['X-Many'], r.cookies.session)
        local s = json.decode(r.body) print(s.method, s.path, s.body, s.x, s.auth, s.agent, s.cookies.k)
    """
    assert await run(source, server) == [
        "nil 200 true true nil",
        "yes 1, 2 s1",
        f"{method.upper()} /echo?a=1&b=x+y&c=5 data yes Basic dTpw lunaq v",
    ]


async def test_head_and_request_with_a_method_of_ones_own(server: Server):
    source = """
        local r = http_client.head(url .. '/echo') print(r.status_code, r.body, r.body_size)
        print(json.decode(http_client.request('options', url .. '/echo').body).method)
    """
    assert await run(source, server) == ["200  0", "OPTIONS"]


async def test_forms_and_files(server: Server):
    source = """
        local r = json.decode(http_client.post(url .. '/echo', {form = {a = '1 2'}}).body)
        print(r.type, r.body)
        r = json.decode(http_client.post(url .. '/echo', {
          form = {a = '1'},
          files = {{name = 'f', filename = 'f.txt', content = 'hello', content_type = 'text/plain'}},
        }).body)
        for _, p in ipairs(r.body) do print(p[1], p[2], p[3], p[4]) end
    """
    printed = await run(source, server)
    assert printed[0] == "application/x-www-form-urlencoded a=1+2"
    assert [line.split()[0] for line in printed[1:]] == ["a", "f"]
    assert printed[2] == "f f.txt text/plain hello"


async def test_an_error_status_is_no_error(server: Server):
    source = "for _, c in ipairs({404, 500}) do local r, e = http_client.get(url .. '/status/' .. c)"
    assert await run(f"{source} print(r.status_code, r.body, e) end", server) == [
        "404 as asked nil",
        "500 as asked nil",
    ]


async def test_no_cookie_outlives_its_call(server: Server):
    source = "http_client.get(url .. '/echo') local r = http_client.get(url .. '/echo')"
    assert await run(f"{source} print(next(json.decode(r.body).cookies))", server) == ["nil"]


async def test_a_batch_answers_by_position_whatever_fails(server: Server):
    source = """
        local rs, es = http_client.request_batch({
          {'GET', url .. '/status/201'}, {'GET', 'http://127.0.0.1:1/'},
          {'POST', url .. '/echo', {body = 'b'}},
          {method = 'GET', url = url .. '/status/404'},
        })
        print(rs[1].status_code, rs[2], json.decode(rs[3].body).body, rs[4].status_code)
        print(es[1], es[2]:kind(), es[3], es[4])
        print(select(2, http_client.request_batch({{'GET', url .. '/status/200'}})))
    """
    assert await run(source, server) == ["201 nil b 404", "nil Internal nil nil", "nil"]


async def test_a_stream_is_read_in_parts_and_closed(server: Server):
    source = """
        local r = http_client.get(url .. '/endless', {stream = true})
        print(r.body_size, r.body, #r.stream:read(10), #r.stream:read() > 0)
        print(r.stream:close(), r.stream:close())
        local data, err = r.stream:read() print(data, err:kind(), err)
        r = http_client.get(url .. '/status/200', {stream = true})
        print(r.stream:read(100), r.stream:read(100))
    """
    assert await run(source, server) == [
        "-1 nil 10 true",
        "true true nil",
        "nil Invalid the stream is closed",
        "as asked nil nil",
    ]


async def test_a_stream_ends_with_its_handler(server: Server):
    host = FakeHost()
    source = "function handle(url) local r = assert(http_client.get(url .. '/endless', {stream = true})) end"
    state = LuaState(Handler("app.lua", source, modules=("http_client",)), host, identity=IDENTITY)
    requests = Requests(MemoryBroker(), Id("app", "memory"), {}, Counters(), LOOPBACK)
    invocation = state.start(MessageContext("1"), server.url)
    request: Any = invocation.step()
    assert isinstance(invocation.step(await requests.execute(request)), Finished)
    await asyncio.sleep(0)
    assert requests._http is not None
    assert requests._http._streams == {}
    await requests.close()


@pytest.mark.parametrize("path", ["/endless", "/bomb"])
async def test_a_response_is_bounded_after_it_was_unpacked(path: str, server: Server):
    source = f"local r, err = http_client.get(url .. '{path}', {{max_response_body = 100000}})"
    assert await run(f"{source} print(r, err:kind(), err:retryable(), err:details().reason)", server) == [
        "nil Internal false too_large"
    ]


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        ("http_client.get(url .. '/never', {timeout = 0.05})", "Internal true timeout"),
        ("http_client.get(url .. '/never', {timeout = '50ms'})", "Internal true timeout"),
        ("http_client.get(url .. '/cut')", "Internal true connection"),
        ("http_client.get('http://127.0.0.1:1/')", "Internal true connect"),
        ("http_client.get('http://no-such-host.invalid/')", "Internal true dns"),
        ("http_client.get((url:gsub('http', 'https')))", "Internal true tls"),
    ],
)
async def test_failures_on_the_way_are_internal_and_retryable(call: str, shown: str, server: Server):
    source = (
        f"local r, err = {call} print(r, err and err:kind(), err and err:retryable(), err and err:details()"
    )
    (line,) = await run(f"{source} and err:details().reason)", server)
    if shown == "Invalid":
        assert line.startswith("table")  # /redirect?to=/ answers 404 in the end
    else:
        assert line == f"nil {shown}"


async def test_redirects_are_followed_but_not_for_ever(server: Server):
    source = """
        local r = http_client.get(url .. '/redirect?to=/status/202')
        print(r.status_code, r.url == url .. '/status/202')
        local n, err = http_client.get(url .. '/loop') print(n, err:kind(), err:details().reason)
    """
    assert await run(source, server) == ["202 true", "nil Internal redirects"]


@pytest.mark.parametrize(
    "call",
    [
        "http_client.get()",
        "http_client.get(5)",
        "http_client.get('ftp://host/')",
        "http_client.get('file:///etc/passwd')",
        "http_client.get('/relative')",
        "http_client.get('http://')",
        "http_client.get('http://host:99999/')",
        "http_client.request(nil, url)",
        "http_client.request('GET /', url)",
        "http_client.get(url, 5)",
        "http_client.get(url, {tiemout = 5})",
        "http_client.get(url, {headers = 5})",
        "http_client.get(url, {headers = {a = {}}})",
        "http_client.get(url, {headers = {a = 'x\\r\\ny: z'}})",
        "http_client.get(url, {timeout = -1})",
        "http_client.get(url, {timeout = 'soon'})",
        "http_client.get(url, {max_response_body = 0})",
        "http_client.get(url, {max_response_body = 1e12})",
        "http_client.get(url, {auth = 'u'})",
        "http_client.post(url, {body = {}})",
        "http_client.post(url, {body = 'x', form = {a = '1'}})",
        "http_client.post(url, {files = {{name = 'f'}}})",
        "http_client.get(url, {tls = {cert = 'x'}})",
        "http_client.get(url, {tls = {ca = 'no pem'}})",
        "http_client.request_batch(5)",
        "http_client.request_batch({})",
        "http_client.request_batch({{'GET', url, {stream = true}}})",
        "http_client.decode_uri('%zz')",
    ],
)
async def test_wrong_arguments_are_invalid(call: str, server: Server):
    assert await run(f"local r, err = {call} print(r, err:kind(), err:retryable())", server) == [
        "nil Invalid false"
    ]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/echo",
        "http://localhost:{port}/echo",
        "http://2130706433:{port}/echo",
        "http://0x7f.1:{port}/echo",
        "http://127.1:{port}/echo",
        "http://[::ffff:127.0.0.1]:{port}/echo",
        "http://0.0.0.0:{port}/echo",
    ],
)
async def test_loopback_is_refused_however_it_is_written(url: str, server: Server):
    source = f"local r, err = http_client.get('{url.format(port=server.port)}') print(r, err:kind(), err)"
    (line,) = await run(source, server, ranges=())
    assert line.startswith(("nil PermissionDenied not allowed: ", "nil Invalid the URL"))


async def test_a_name_that_changes_its_address_between_look_and_connect_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch
):
    """DNS rebinding: whatever a resolver says, the address of the socket is what counts."""
    loop = asyncio.get_running_loop()
    answers = ["93.184.216.34", "127.0.0.1"]

    async def rebinding(_host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(), port))]

    monkeypatch.setattr(loop, "getaddrinfo", rebinding)
    source = f"local r, err = http_client.get('http://rebind.example:{server.port}/echo') print(r, err)"
    assert await run(source, server, ranges=()) == ["nil not allowed: private IP 127.0.0.1"]


@pytest.mark.parametrize(
    "to", ["http://169.254.169.254/latest/meta-data", "http://127.0.0.2:1/", "http://10.0.0.1/"]
)
async def test_a_redirect_is_looked_at_again(to: str, server: Server):
    source = f"local r, err = http_client.get(url .. '/redirect?to={to}') print(r, err:kind())"
    assert await run(source, server, ranges=("127.0.0.1/32",)) == ["nil PermissionDenied"]


async def test_a_redirect_to_another_scheme_is_refused(server: Server):
    source = "local r, err = http_client.get(url .. '/redirect?to=file:///etc/passwd')"
    assert await run(f"{source} print(r, err:kind(), err:retryable())", server) == ["nil Internal false"]


@pytest.mark.parametrize(
    ("address", "refused"),
    [
        ("8.8.8.8", None),
        ("2001:4860:4860::8888", None),
        ("10.1.2.3", "not allowed: private IP 10.1.2.3"),
        ("10.2.0.1", None),
        ("100.64.0.1", "not allowed: private IP 100.64.0.1"),
        ("192.168.1.1", "not allowed: private IP 192.168.1.1"),
        ("::1", "not allowed: private IP ::1"),
        ("fc00::1", "not allowed: private IP fc00::1"),
        ("fe80::1%eth0", "not allowed: IP fe80::1"),
        ("169.254.169.254", "not allowed: IP 169.254.169.254"),
        ("::ffff:169.254.169.254", "not allowed: IP 169.254.169.254"),
        ("64:ff9b::a9fe:a9fe", "not allowed: IP 169.254.169.254"),
        ("2002:a9fe:a9fe::1", "not allowed: IP 169.254.169.254"),
        ("64:ff9b::808:808", None),
        ("fd00:ec2::254", "not allowed: IP fd00:ec2::254"),
        ("168.63.129.16", "not allowed: IP 168.63.129.16"),
        ("100.100.100.200", "not allowed: IP 100.100.100.200"),
        ("0.0.0.0", "not allowed: IP 0.0.0.0"),  # noqa: S104 - refused
        ("224.0.0.1", "not allowed: IP 224.0.0.1"),
    ],
)
def test_which_addresses_are_refused_with_ten_two_allowed(address: str, refused: str | None):
    from ipaddress import ip_network  # noqa: PLC0415 - only here

    assert refusal(address, (ip_network("10.2.0.0/16"),)) == refused


def test_no_configuration_allows_the_metadata_address():
    from ipaddress import ip_network  # noqa: PLC0415 - only here

    everything = (ip_network("0.0.0.0/0"), ip_network("::/0"))
    assert refusal("169.254.169.254", everything) is not None
    assert refusal("fd00:ec2::254", everything) is not None
    assert refusal("127.0.0.1", everything) is None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("{unix_socket = '/run/x.sock'}", "not allowed: unix socket"),
        ("{tls = {insecure_skip_verify = true}}", "not allowed: insecure TLS"),
    ],
)
async def test_what_is_never_allowed_is_denied(options: str, text: str):
    source = f"local r, err = http_client.get('https://example.com', {options}) print(r, err:kind(), err)"
    assert await run(source) == [f"nil PermissionDenied {text}"]


async def test_the_policy_is_asked_about_each_url(server: Server):
    denied = FakeHost(denied=(("http_client.request", f"{server.url}/echo"),))
    source = """
        local r, err = http_client.get(url .. '/echo') print(r, err:kind())
        r, err = http_client.get(url .. '/redirect?to=/echo') print(r, err:kind())
    """
    assert await run(source, server, host=denied) == ["nil PermissionDenied"] * 2


async def test_the_environments_proxy_is_not_used(server: Server, monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert await run("print(http_client.get(url .. '/status/200').status_code)", server) == ["200"]


async def test_uris_are_encoded_and_decoded():
    source = """
        local e, d = http_client.encode_uri, http_client.decode_uri
        print(e('a b&c/d-_.~ü+'), d(e('a b&c/ü+\\0')) == 'a b&c/ü+\\0', (pcall(e, 5)))
    """
    assert await run(source) == ["a+b%26c%2Fd-_.~%C3%BC%2B true false"]


def test_it_is_there_only_where_it_is_listed():
    assert printed_by("print(http_client, (pcall(require, 'http_client')))") == ["nil false"]


def test_outside_a_handler_there_is_no_network():
    host = FakeHost()
    LuaState(
        Handler(
            "app.lua",
            "print(http_client.get('http://example.com')) return print",
            modules=("http_client",),
        ),
        host,
        identity=IDENTITY,
    )
    assert host.printed() == ["nil no context"]


def test_the_private_ranges_are_configured_on_the_consumer():
    def configured(*ranges: str) -> Any:
        return consumer_of(lunaq={"httpClient": {"privateRanges": list(ranges)}}).handler.private_ranges

    assert configured("10.0.0.0/8") == ("10.0.0.0/8",)
    with pytest.raises(EntriesError, match=r"privateRanges.*such as"):
        configured("10.0.0.0/99")


def test_an_error_shows_nothing_of_python():
    from lunaq_runtime.worker.http_client import _failure  # noqa: PLC0415 - its last line is not to be reached

    error = _failure(RuntimeError("<object at 0x1>"), None)
    assert isinstance(error, HandlerError)
    assert error.text == "the server: the request failed"
