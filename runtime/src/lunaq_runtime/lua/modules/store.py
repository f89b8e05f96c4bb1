"""The `store` module: key-value stores in memory, shared by all states of the process (lua-api.md 3.8).

Values are kept packed: what a handler put in is a copy, and its size is known to the byte. Called from
several threads at once.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgpack

from lunaq_runtime.lua.errors import ALREADY_EXISTS, CONFLICT, INTERNAL, NOT_FOUND, HandlerError
from lunaq_runtime.lua.modules import Calls, Functions, invalid, require, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lunaq_runtime.entries.model import Store

MAX_KEY = 1024
MAX_VALUE = 1024 * 1024
"""Bytes of a key, and of a packed value."""

MAX_PAGE = 1000
DEFAULT_PAGE = 100
MAX_PAGE_BYTES = 1024 * 1024
"""How much one `list` returns: more would be handed over at once."""

_MAX_TTL = 10 * 365 * 24 * 3600.0


@dataclass(slots=True)
class _Item:
    packed: bytes
    version: int
    expires: float


class MemoryStore:
    """One store. A key counts with its bytes, its value's, and `_OVERHEAD`; `clock` is monotonic, in seconds.

    A full store refuses new keys (or bytes), after it has dropped what has expired.
    """

    _OVERHEAD = 128

    def __init__(self, settings: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._items: dict[bytes, _Item] = {}
        self._sorted: list[bytes] | None = None
        self._bytes = 0
        self._version = 0
        self._swept = clock()
        self._lock = threading.Lock()

    @property
    def info(self) -> dict[str, Any]:
        """Tell what `store:info()` returns."""
        return {
            "id": str(self._settings.id),
            "backend": "memory",
            "consistency": "local",
            "durable": False,
            "list": True,
            "versioned": True,
            "conditional_put": True,
            "ttl": True,
        }

    def entry(self, key: bytes) -> tuple[Any, int] | None:
        """Return a copy of a key's value and its version, or None."""
        with self._lock:
            item = self._live(key)
        return None if item is None else (_unpack(item.packed), item.version)

    def has(self, key: bytes) -> bool:
        """Tell whether a key is there."""
        with self._lock:
            return self._live(key) is not None

    def put(
        self,
        key: bytes,
        value: Any,
        ttl: float = 0.0,
        *,
        only_if_absent: bool = False,
        if_version: int | None = None,
    ) -> int:
        """Keep a copy of `value` for `ttl` seconds (0: for good), and return its version."""
        packed = _pack(value)
        with self._lock:
            self._sweep_in_time()
            present = self._live(key)
            if only_if_absent and present is not None:
                raise HandlerError(f"key already exists: {_shown(key)}", ALREADY_EXISTS, retryable=False)
            if if_version is not None and (present is None or present.version != if_version):
                found = "absent" if present is None else f"of version {present.version}"
                text = f"key {_shown(key)} is {found}, not of version {if_version}: read it again"
                raise HandlerError(text, CONFLICT, retryable=True)
            self._make_room(key, packed)
            self._version += 1
            if key not in self._items:
                self._sorted = None
            self._remove(key)
            self._items[key] = _Item(packed, self._version, self._clock() + ttl if ttl else float("inf"))
            self._bytes += self._size(key, packed)
            return self._version

    def delete(self, key: bytes) -> bool:
        """Forget a key; False where there is none."""
        with self._lock:
            if self._live(key) is None:
                return False
            self._drop(key)
            return True

    def page(self, prefix: bytes, after: bytes, limit: int) -> tuple[list[tuple[bytes, Any, int]], bool]:
        """List entries by key, and tell whether more follow; pages are bounded in bytes, too."""
        with self._lock:
            self._sweep()
            if self._sorted is None:
                self._sorted = sorted(self._items)
            found: list[tuple[bytes, _Item]] = []
            size = 0
            more = False
            for key in self._sorted:
                if key <= after or not key.startswith(prefix):
                    continue
                item = self._items[key]
                size += len(item.packed)
                if len(found) >= limit or (found and size > MAX_PAGE_BYTES):
                    more = True
                    break
                found.append((key, item))
        return [(key, _unpack(item.packed), item.version) for key, item in found], more

    def _live(self, key: bytes) -> _Item | None:
        item = self._items.get(key)
        if item is not None and item.expires <= self._clock():
            self._drop(key)
            return None
        return item

    def _make_room(self, key: bytes, packed: bytes) -> None:
        settings, known = self._settings, self._items.get(key)
        grows = self._size(key, packed) - (self._size(key, known.packed) if known else 0)
        for attempt in range(2):
            too_many = known is None and len(self._items) >= settings.max_size
            if not too_many and self._bytes + grows <= settings.max_bytes:
                return
            if attempt == 0:
                self._sweep()
        what = f"{settings.max_size} keys" if too_many else f"{settings.max_bytes} bytes"
        text = f"store {settings.id} is full at {what}: delete keys, give them a ttl, or raise its limit"
        raise HandlerError(text, INTERNAL, retryable=True, details={"reason": "full"})

    def _sweep_in_time(self) -> None:
        if self._clock() - self._swept >= self._settings.cleanup_interval:
            self._sweep()

    def _sweep(self) -> None:
        self._swept = now = self._clock()
        for key in [key for key, item in self._items.items() if item.expires <= now]:
            self._drop(key)

    def _drop(self, key: bytes) -> None:
        self._remove(key)
        self._sorted = None

    def _remove(self, key: bytes) -> None:
        item = self._items.pop(key, None)
        if item is not None:
            self._bytes -= self._size(key, item.packed)

    def _size(self, key: bytes, packed: bytes) -> int:
        return len(key) + len(packed) + self._OVERHEAD


class Stores:
    """The stores of a process by ID; `others` are IDs of entries that are no stores."""

    def __init__(self, settings: Iterable[Store] = (), others: Iterable[str] = ()) -> None:
        self._stores = {str(one.id): MemoryStore(one) for one in settings}
        self._others = frozenset(others)

    def find(self, store_id: str) -> MemoryStore:
        """Return a store, or raise NotFound, or Invalid for the ID of something else."""
        if found := self._stores.get(store_id):
            return found
        if store_id in self._others:
            raise invalid(f"not a store: {store_id}")
        raise HandlerError(f"store not found: {store_id}", NOT_FOUND, retryable=False)


def functions(calls: Calls, stores: Stores) -> Functions:
    """Name the callbacks of `prelude/store.lua`; each takes the store's ID first."""
    answer = calls.answering

    def find(action: str, store_id: bytes) -> MemoryStore:
        resource = store_id.decode(errors="replace")
        require(calls, action, resource)
        return stores.find(resource)

    def get(store_id: bytes, key: bytes) -> Any:
        return _found(key, find("store.key.get", store_id).entry(_key(key)))[0]

    def entry(store_id: bytes, key: bytes) -> Any:
        value, version = _found(key, find("store.key.get", store_id).entry(_key(key)))
        return {"key": key, "value": value, "version": version}

    def put(store_id: bytes, key: bytes, options: tuple[Any, ...], value: Any) -> int:
        ttl, absent, version = options
        store = find("store.key.set", store_id)
        if absent and version is not None:
            raise invalid("only_if_absent and if_version exclude each other: give one of them")
        if value is None:
            raise invalid("value required")
        return store.put(_key(key), value, _ttl(ttl), only_if_absent=bool(absent), if_version=version)

    def put_entry(
        store_id: bytes,
        key: bytes,
        ttl: Any,
        absent: Any,
        version: Any,
        *tokens: Any,
    ) -> dict[str, Any]:
        value = calls.value(tokens)
        version = put(store_id, key, (ttl, absent, version), value)
        return {"key": key, "value": value, "version": version}

    def put_value(store_id: bytes, key: bytes, ttl: Any, *tokens: Any) -> bool:
        put(store_id, key, (ttl, None, None), calls.value(tokens))
        return True

    def page(store_id: bytes, prefix: bytes, after: bytes, limit: Any) -> dict[str, Any]:
        store = find("store.key.list", store_id)
        items, more = store.page(prefix, after, _limit(limit))
        listed = [{"key": key, "value": value, "version": version} for key, value, version in items]
        return {"items": listed, "cursor": items[-1][0] if items else after, "has_more": more}

    return {
        "store_open": answer(lambda store_id: bool(find("store.get", store_id))),
        "store_get": answer(get),
        "store_entry": answer(entry),
        "store_set": answer(put_value),
        "store_put": answer(put_entry),
        "store_has": answer(lambda store_id, key: find("store.key.has", store_id).has(_key(key))),
        "store_delete": answer(lambda store_id, key: find("store.key.delete", store_id).delete(_key(key))),
        "store_list": answer(page),
        "store_info": answer(lambda store_id: find("store.info", store_id).info),
    }


def _key(key: Any) -> bytes:
    if not isinstance(key, bytes) or not key:
        raise invalid("key required: a string that is not empty")
    if len(key) > MAX_KEY:
        raise invalid(f"the key has {len(key)} bytes, more than {MAX_KEY}")
    return key


def _ttl(ttl: Any) -> float:
    if ttl is None:
        return 0.0
    if not 0 <= ttl <= _MAX_TTL:
        raise invalid("ttl must be a number of seconds, 0 (for good) to ten years")
    return float(ttl)


def _limit(limit: Any) -> int:
    if limit is None:
        return DEFAULT_PAGE
    number = whole(limit)
    if number is None or number < 1:
        raise invalid(f"limit must be a whole number from 1 to {MAX_PAGE}")
    return min(number, MAX_PAGE)


def _found(key: Any, entry: tuple[Any, int] | None) -> tuple[Any, int]:
    if entry is None:
        raise HandlerError(f"key not found: {_shown(key)}", NOT_FOUND, retryable=False)
    return entry


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    if len(packed) > MAX_VALUE:
        raise invalid(f"the value has {len(packed)} bytes, more than {MAX_VALUE}: keep it in parts")
    return packed


def _unpack(packed: bytes) -> Any:
    return msgpack.unpackb(packed, strict_map_key=False)


def _shown(key: bytes) -> str:
    return key[:80].decode(errors="replace")
