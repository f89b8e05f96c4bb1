"""RabbitMQ's management API, as far as broker users need it; the pool in `reconcile.managements` makes these.

One session per Broker, however many Consumers. Redirects are refused, for they would carry the operator's
credentials to another place; a password is sent as a hash, and nothing secret is ever in a text.
"""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

import aiohttp

from lunaq_operator import names
from lunaq_operator.broker_users import HASHING, TAG, Account, Texts
from lunaq_operator.connections import tls_context

if TYPE_CHECKING:
    from lunaq_operator.reconcile.pool import Target

_TIMEOUT = aiohttp.ClientTimeout(total=15.0, sock_connect=5.0)
_LARGEST_ANSWER = 64 * 1024 * 1024
_CONNECTIONS = 8
_REDIRECT = 300
_ERROR = 400
_UNAUTHORIZED = 401
_FORBIDDEN = 403
_NOT_FOUND = 404


class ManagementError(Exception):
    """The API said no, or nothing; `refused`: the credentials or their rights do not suffice."""

    def __init__(self, text: str, *, refused: bool = False) -> None:
        super().__init__(text)
        self.refused = refused


class Management(Protocol):
    """What there is to do with broker users; every call raises ManagementError."""

    async def knows(self, vhost: str) -> bool:
        """Tell whether there is such a virtual host."""

    async def accounts(self, prefix: str) -> dict[str, Account]:
        """Read the users whose names begin with `prefix`, with all their permissions."""

    async def put_user(self, name: str, password_hash: str) -> None:
        """Make a user, or give it another password; it gets our tag and no other."""

    async def delete_user(self, name: str) -> None:
        """Delete a user, and close its connections; one that is gone is no error."""

    async def grant(self, vhost: str, name: str, texts: Texts) -> None:
        """Set a user's permissions on one virtual host."""

    async def revoke(self, vhost: str, name: str) -> None:
        """Take a user's permissions on one virtual host; none there is no error."""

    async def connections(self, name: str) -> int:
        """Count a user's open connections."""

    async def close_connections(self, name: str) -> None:
        """Close a user's connections: what they were allowed is cached for the life of a channel."""

    async def close(self) -> None:
        """Close the session."""


class HttpManagement:
    """A Management over HTTP; `uri` is the API's address without `/api`."""

    def __init__(self, uri: str, target: Target) -> None:
        self._base = f"{uri.rstrip('/')}/api"
        credentials = base64.b64encode(f"{target.username}:{target.password}".encode()).decode()
        self._headers = {"User-Agent": names.FIELD_MANAGER, "Authorization": f"Basic {credentials}"}
        self._tls = tls_context(target) if uri.startswith("https:") else None
        self._session: aiohttp.ClientSession | None = None

    async def knows(self, vhost: str) -> bool:
        return await self._call("GET", f"/vhosts/{_quoted(vhost)}", missing_ok=True) is not None

    async def accounts(self, prefix: str) -> dict[str, Account]:
        users, permissions = await asyncio.gather(
            self._call("GET", "/users"), self._call("GET", "/permissions")
        )
        allowed: dict[str, dict[str, Texts]] = {}
        for one in permissions or ():
            if str(one["user"]).startswith(prefix):
                texts = Texts(one["configure"], one["write"], one["read"])
                allowed.setdefault(one["user"], {})[one["vhost"]] = texts
        return {
            user["name"]: Account(
                tags=_tags(user.get("tags")),
                password_hash=str(user.get("password_hash") or ""),
                hashing=str(user.get("hashing_algorithm") or ""),
                permissions=allowed.get(user["name"], {}),
            )
            for user in users or ()
            if str(user["name"]).startswith(prefix)
        }

    async def put_user(self, name: str, password_hash: str) -> None:
        body = {"password_hash": password_hash, "hashing_algorithm": HASHING, "tags": TAG}
        await self._call("PUT", f"/users/{_quoted(name)}", body=body)

    async def delete_user(self, name: str) -> None:
        await self._call("DELETE", f"/users/{_quoted(name)}", missing_ok=True)
        await self.close_connections(name)

    async def grant(self, vhost: str, name: str, texts: Texts) -> None:
        body = {"configure": texts.configure, "write": texts.write, "read": texts.read}
        await self._call("PUT", f"/permissions/{_quoted(vhost)}/{_quoted(name)}", body=body)

    async def revoke(self, vhost: str, name: str) -> None:
        await self._call("DELETE", f"/permissions/{_quoted(vhost)}/{_quoted(name)}", missing_ok=True)

    async def connections(self, name: str) -> int:
        return len(await self._call("GET", f"/connections/username/{_quoted(name)}", missing_ok=True) or ())

    async def close_connections(self, name: str) -> None:
        if await self.connections(name):
            await self._call("DELETE", f"/connections/username/{_quoted(name)}", missing_ok=True)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _call(self, method: str, path: str, *, body: Any = None, missing_ok: bool = False) -> Any:
        """Return the decoded answer; an empty success is an empty dict, a missing object None."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=_TIMEOUT,
                connector=aiohttp.TCPConnector(limit=_CONNECTIONS),
                headers=self._headers,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        what = f"{method} {self._base}{path}"
        options: dict[str, Any] = {} if self._tls is None else {"ssl": self._tls}
        try:
            async with self._session.request(
                method, f"{self._base}{path}", json=body, allow_redirects=False, **options
            ) as response:
                data = await response.content.read(_LARGEST_ANSWER + 1)
                while not response.content.at_eof() and len(data) <= _LARGEST_ANSWER:
                    data += await response.content.read(_LARGEST_ANSWER + 1 - len(data))
                return _answer(what, response.status, data, missing_ok=missing_ok)
        except TimeoutError as error:
            raise ManagementError(f"{what}: no answer in {_TIMEOUT.total:.0f} s") from error
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
            # RuntimeError: the session was closed, for the Broker has other credentials by now.
            raise ManagementError(f"{what}: {error}") from error


def _answer(what: str, status: int, data: bytes, *, missing_ok: bool) -> Any:
    if status == _NOT_FOUND and missing_ok:
        return None
    if status in (_UNAUTHORIZED, _FORBIDDEN):
        text = "the broker refuses the operator's user; it needs the tag administrator to make users"
        raise ManagementError(f"{what}: {status}: {text}", refused=True)
    if _REDIRECT <= status < _ERROR:
        text = "is a redirect, which is not followed; write the final address into spec.management.uri"
        raise ManagementError(f"{what}: {status} {text}", refused=True)
    if status >= _ERROR or len(data) > _LARGEST_ANSWER:
        said = data[:300].decode(errors="replace")
        raise ManagementError(f"{what}: {status}: {said}")
    try:
        return json.loads(data) if data else {}
    except ValueError as error:
        raise ManagementError(f"{what}: the answer is not JSON; is it RabbitMQ's management API?") from error


def _tags(found: Any) -> frozenset[str]:
    """Read tags, which older versions write as one text."""
    texts = found.split(",") if isinstance(found, str) else found or ()
    return frozenset(str(tag).strip() for tag in texts if str(tag).strip())


def _quoted(name: str) -> str:
    return quote(name, safe="")
