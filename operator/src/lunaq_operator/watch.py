"""kopf watches, we keep the store: lists replace it, events amend it; started by `main`.

kopf (1.45) re-lists after `410 Gone` and reports what it finds, but not what vanished meanwhile, and it
does not say when the first lists are complete. Both can be seen at the HTTP session, which a login handler
may supply: `Lists` is a middleware of that session. Only `@kopf.on.event` is used, so kopf itself writes
nothing to anybody's objects (design.md section 6).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import aiohttp
import kopf

from lunaq_operator.store import version_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from lunaq_operator.kinds import Kind
    from lunaq_operator.kube import Kube
    from lunaq_operator.store import Obj, Store

    Changed = Callable[[Kind, Obj], None]

log = logging.getLogger(__name__)

CHUNK = 500
"""How many objects one page of a list holds."""

_OK = 200


@dataclass(slots=True)
class Scope:
    """One URL that is listed and watched: a kind in a namespace, or (`""`) in the whole cluster."""

    kind: Kind
    namespace: str
    last_data: float
    pages: list[Obj] = field(default_factory=list)
    """What came so far of a list in chunks; a half-read list concludes nothing."""


class Lists:
    """An aiohttp client middleware: reads the lists that kopf reads, and hears the watches' heartbeat.

    `on_change` is told of every object that a list brought, changed or made vanish, `on_listed` of every
    complete list; `clock` is monotonic.
    """

    def __init__(
        self,
        store: Store,
        on_change: Changed,
        on_listed: Callable[[], None] = lambda: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._on_change = on_change
        self._on_listed = on_listed
        self._clock = clock
        now = clock()
        self._scopes = {
            kinds.kind.path(namespace): Scope(kinds.kind, namespace, now)
            for kinds in store
            for namespace in kinds.scopes
        }

    def age(self) -> float:
        """Return the seconds since the scope that was silent longest last gave a sign of life."""
        return self._clock() - min(scope.last_data for scope in self._scopes.values())

    def quiet(self, seconds: float) -> list[str]:
        """Name the URLs that gave no sign of life for so long."""
        now = self._clock()
        return sorted(path for path, scope in self._scopes.items() if now - scope.last_data > seconds)

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        response = await handler(request)
        scope = self._scopes.get(request.url.path)
        if scope is None or request.method.upper() != "GET" or response.status != _OK:
            return response
        scope.last_data = self._clock()
        if "watch" in request.url.query:
            alive = _AliveContent(response.content, scope, self._clock)
            response.content = cast("aiohttp.StreamReader", alive)
        else:
            page = await response.json()  # cached by aiohttp: kopf reads the same body again
            self.take_page(scope.kind, scope.namespace, page, first="continue" not in request.url.query)
        return response

    def take_page(self, kind: Kind, namespace: str, page: dict[str, Any], *, first: bool) -> None:
        """Take one page of a list; the last one replaces the scope's part of the store."""
        scope = self._scopes[kind.path(namespace)]
        if first:
            scope.pages = []
        scope.pages += page.get("items") or []
        metadata = page.get("metadata") or {}
        if metadata.get("continue"):
            return
        items, scope.pages = scope.pages, []
        store = self._store[kind]
        changed, gone = store.replace(namespace, items, version_of(metadata))
        for key in changed:
            self._on_change(kind, store.objects[key])
        for obj in gone:
            self._on_change(kind, obj)
        if gone:
            log.info("%d %s vanished unseen between two lists", len(gone), kind.plural)
        self._on_listed()


class _AliveContent:
    """The body of a watch response, noting when data (bookmarks included) last came."""

    def __init__(self, content: aiohttp.StreamReader, scope: Scope, clock: Callable[[], float]) -> None:
        self._content = content
        self._scope = scope
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        async for chunk in self._content.iter_chunked(size):
            self._scope.last_data = self._clock()
            yield chunk


def settings() -> kopf.OperatorSettings:
    """Return kopf's settings: nothing is written or posted, outages are short pauses."""
    result = kopf.OperatorSettings()
    result.posting.enabled = False
    result.scanning.disabled = True
    result.peering.standalone = True
    result.watching.server_timeout = 240
    result.watching.connect_timeout = 5
    result.watching.chunk_size = CHUNK
    result.networking.request_timeout = 60
    result.networking.connect_timeout = 5
    result.networking.error_backoffs = Backoffs()
    return result


class Backoffs:
    """Pauses of 0.2 to 2 s between kopf's attempts, without end: an API server may be away for long."""

    def __iter__(self) -> Any:
        yield from (0.2, 0.5, 1.0)
        while True:
            yield 2.0


def register(
    registry: kopf.OperatorRegistry,
    kopf_settings: kopf.OperatorSettings,
    kube: Kube,
    store: Store,
    lists: Lists,
    on_change: Changed,
) -> None:
    """Register the login and one event handler per kind of the store."""

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        return kopf.AiohttpSession(server=kube.server, aiohttp_session=_session(kube, lists))

    for kind_store in store:
        kind = kind_store.kind
        if kind.selector:
            kopf_settings.watching.label_selectors[_selected(kind)] = kind.selector
        _register_kind(registry, store, kind, on_change)


def _selected(kind: Kind) -> Callable[[Any], bool]:
    return lambda resource: (resource.group, resource.plural) == (kind.group, kind.plural)


def _register_kind(registry: kopf.OperatorRegistry, store: Store, kind: Kind, on_change: Changed) -> None:
    @kopf.on.event(kind.group, kind.version, kind.plural, registry=registry, id=f"see-{kind.plural}")
    async def see(event: Any, **_: Any) -> None:
        obj = cast("Obj", dict(event["object"]))
        obj["metadata"] = dict(obj["metadata"])
        deleted = event["type"] == "DELETED"
        if store[kind].remove(obj) if deleted else store[kind].put(obj):
            on_change(kind, obj)


def _session(kube: Kube, lists: Lists) -> aiohttp.ClientSession:
    async def authenticate(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        request.headers.update(await kube.auth_headers())
        return await handler(request)

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=kube.ssl_context()),
        middlewares=[lists, authenticate],
    )


def namespaces_or_cluster(namespaces: Iterable[str]) -> dict[str, Any]:
    """Return kopf's arguments for what is watched."""
    chosen = list(namespaces)
    return {"namespaces": chosen} if chosen else {"clusterwide": True}
