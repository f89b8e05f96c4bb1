"""The arguments of `http_client` (lua-api.md 3.10), checked: pure, without a client.

`invocation` calls it when `prelude/http.lua` has yielded a call; `worker.http_client` carries out what it
returns, and decides about addresses, which only a connection knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lunaq_runtime import durations
from lunaq_runtime.entries.model import Tls
from lunaq_runtime.lua.errors import PERMISSION_DENIED, UNAVAILABLE, HandlerError
from lunaq_runtime.lua.modules import invalid, require, whole
from lunaq_runtime.lua.requests import HttpCall, HttpCalls, HttpFile, HttpRead, Streams

if TYPE_CHECKING:
    from lunaq_runtime.lua.modules import Calls

ACTION = "http_client.request"
DEFAULT_TIMEOUT = 30.0
MAX_TIMEOUT = 3600.0
DEFAULT_BODY = 4 * 1024 * 1024
MAX_BODY = 64 * 1024 * 1024
"""Bytes of a response's body that is not streamed."""
MAX_BATCH = 100
MAX_READ = 1024 * 1024
DEFAULT_READ = 64 * 1024
MAX_FIELDS = 1000

_OPTIONS = frozenset(
    {
        "headers",
        "query",
        "cookies",
        "form",
        "body",
        "files",
        "auth",
        "timeout",
        "stream",
        "max_response_body",
        "unix_socket",
        "overlay_network",
        "tls",
    }
)
_METHOD_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ-")


def check_call(calls: Calls, streams: Streams, given: Any) -> HttpCalls:
    """Check one request, `{method, url, options}`; raises HandlerError."""
    return HttpCalls((_call(calls, given),), streams, batch=False, can=lambda url: calls.can(ACTION, url))


def check_batch(calls: Calls, streams: Streams, given: Any) -> HttpCalls:
    """Check a list of requests; raises HandlerError for the first that is wrong."""
    if not isinstance(given, list) or not given:
        raise invalid("requests must be a list of {method, url, options}")
    if len(given) > MAX_BATCH:
        raise invalid(f"{len(given)} requests are more than {MAX_BATCH}")
    checked = tuple(_call(calls, one) for one in given)
    if any(one.stream for one in checked):
        raise invalid("stream is not available in request_batch")
    return HttpCalls(checked, streams, batch=True, can=lambda url: calls.can(ACTION, url))


def check_read(stream: int, count: Any) -> HttpRead:
    """Check `stream:read(n)`; raises HandlerError."""
    number = DEFAULT_READ if count is None else whole(count)
    if number is None or number < 1:
        raise invalid("the number of bytes must be a positive whole number")
    return HttpRead(stream, min(number, MAX_READ))


def _parts(one: Any) -> Any:
    if isinstance(one, dict) and set(one) <= {1, 2, 3, "method", "url", "options"}:
        return [
            one.get(position, one.get(name)) for position, name in enumerate(("method", "url", "options"), 1)
        ]
    if isinstance(one, list) and 2 <= len(one) <= 3:  # noqa: PLR2004 - method, url and maybe options
        return one
    raise invalid("each request must be {method, url, options}")


def _call(calls: Calls, given: Any) -> HttpCall:
    method, url, options = (*_parts(given), None)[:3]
    if not isinstance(method, str) or not method or not set(method.upper()) <= _METHOD_CHARACTERS:
        raise invalid("method required, such as GET")
    _check_url(url)
    require(calls, ACTION, url)
    if options == [] or options is None:
        options = {}
    if not isinstance(options, dict):
        raise invalid("options must be a table")
    unknown = sorted(str(name) for name in options if name not in _OPTIONS)
    if unknown:
        raise invalid(f"unknown option {unknown[0][:40]!r}: use {', '.join(sorted(_OPTIONS))}")
    _refuse(options)
    return HttpCall(
        method=method.upper(),
        url=url,
        headers=_texts(options, "headers"),
        query=_texts(options, "query"),
        cookies=_texts(options, "cookies"),
        form=_texts(options, "form") if "form" in options else None,
        body=_body(options),
        files=_files(options),
        auth=_auth(options),
        timeout=_timeout(options.get("timeout")),
        stream=options.get("stream") is True,
        max_body=_max_body(options),
        tls=_tls(options),
    )


def _check_url(url: Any) -> None:
    if not isinstance(url, str) or not url:
        raise invalid("URL required")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        usable = False
    if not usable:
        raise invalid(f"not an http:// or https:// URL: {url[:80]}")


def _refuse(options: dict[str, Any]) -> None:
    if options.get("unix_socket") is not None:
        raise _denied("unix socket")
    if options.get("overlay_network") is not None:
        raise HandlerError("overlay_network is not available in Lunaq", UNAVAILABLE, retryable=False)
    tls = options.get("tls")
    if isinstance(tls, dict) and tls.get("insecure_skip_verify"):
        raise _denied("insecure TLS")


def _texts(options: dict[str, Any], name: str) -> dict[str, str]:
    given = options.get(name)
    if given is None or given == []:
        return {}
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise invalid(f"{name} must be a table of texts")
    if len(given) > MAX_FIELDS:
        raise invalid(f"{name} has {len(given)} entries, more than {MAX_FIELDS}")
    # Sorted, as Lua's tables have no order: the same call sends the same bytes.
    return {key: _text(value, f"{name}.{key}") for key, value in sorted(given.items())}


def _text(value: Any, where: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if not isinstance(value, str):
        raise invalid(f"{where[:80]} must be text")
    return value


def _body(options: dict[str, Any]) -> bytes | None:
    given = [name for name in ("body", "form", "files") if options.get(name) is not None]
    if "body" not in given:
        return None
    if len(given) > 1:
        raise invalid(f"body and {given[1]} exclude each other: give one of them")
    return _bytes(options["body"], "body")


def _bytes(value: Any, where: str) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if not isinstance(value, bytes):
        raise invalid(f"{where} must be a string")
    return value


def _files(options: dict[str, Any]) -> tuple[HttpFile, ...]:
    given = options.get("files") or []
    if not isinstance(given, list):
        raise invalid("files must be a list")
    if len(given) > MAX_FIELDS:
        raise invalid(f"{len(given)} files are more than {MAX_FIELDS}")
    files = []
    for position, one in enumerate(given, start=1):
        where = f"files[{position}]"
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            raise invalid(f"{where} must be a table with a name")
        if one.get("content") is None:
            raise invalid(f"{where}.content must be a string (a reader is not available)")
        name = one["name"]
        files.append(
            HttpFile(
                name=name,
                filename=_text(one.get("filename", name), f"{where}.filename"),
                content=_bytes(one["content"], f"{where}.content"),
                content_type=_text(
                    one.get("content_type", "application/octet-stream"), f"{where}.content_type"
                ),
            )
        )
    return tuple(files)


def _auth(options: dict[str, Any]) -> tuple[str, str] | None:
    auth = options.get("auth")
    if auth is None:
        return None
    if not isinstance(auth, dict) or not isinstance(auth.get("user"), str):
        raise invalid("auth must be a table with user and pass")
    return auth["user"], _text(auth.get("pass", ""), "auth.pass")


def _timeout(value: Any) -> float:
    if value is None:
        return DEFAULT_TIMEOUT
    seconds = None
    if isinstance(value, str):
        try:
            seconds = durations.parse_duration(value) / durations.SECOND
        except ValueError:
            seconds = None
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    if seconds is None or not 0 < seconds <= MAX_TIMEOUT:
        raise invalid(f"timeout must be seconds, or a duration such as 5s, up to {MAX_TIMEOUT:g} s")
    return seconds


def _max_body(options: dict[str, Any]) -> int | None:
    given = options.get("max_response_body")
    if given is None:
        return None if options.get("stream") is True else DEFAULT_BODY
    number = whole(given)
    if number is None or not 1 <= number <= MAX_BODY:
        raise invalid(f"max_response_body must be bytes, from 1 to {MAX_BODY}")
    return number


def _tls(options: dict[str, Any]) -> Tls | None:
    tls = options.get("tls")
    if tls is None or tls == []:
        return None
    if not isinstance(tls, dict):
        raise invalid("tls must be a table")
    cert, key, ca, server_name = (
        _text(tls.get(name, ""), f"tls.{name}") for name in ("cert", "key", "ca", "server_name")
    )
    if bool(cert) != bool(key):
        raise invalid("tls.cert and tls.key only go together")
    return Tls(cert=cert, key=key, ca=ca, server_name=server_name)


def _denied(what: str) -> HandlerError:
    return HandlerError(f"not allowed: {what}", PERMISSION_DENIED, retryable=False)
