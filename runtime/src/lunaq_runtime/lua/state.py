"""One sandboxed Lua state per concurrency slot; the worker makes them and starts invocations in them.

A state handles one message at a time. Its globals and module-level locals survive between messages. It may
be used from any thread, by one at a time; `Invocation.interrupt` alone may be called from another.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lunaq_runtime.lua import bridge
from lunaq_runtime.lua.callbacks import Callbacks
from lunaq_runtime.lua.errors import KINDS, HandlerError, HandlerLoadError
from lunaq_runtime.lua.host import Host, Identity, MessageContext
from lunaq_runtime.lua.invocation import Invocation, timeout_error
from lunaq_runtime.lua.prelude import new_runtime, run_prelude

if TYPE_CHECKING:
    from collections.abc import Callable

    from lunaq_runtime.entries.model import Handler

__all__ = ["HandlerLoadError", "Host", "Identity", "Invocation", "LuaState", "MessageContext"]

DEFAULT_MODULES = (
    "queue",
    "logger",
    "json",
    "time",
    "channel",
    "uuid",
    "env",
    "store",
    "hash",
    "base64",
    "crypto",
    "metrics",
    "funcs",
    "ctx",
    "security",
    "payload",
)
"""What a handler without a list of modules gets: core and useful ones, without network access."""

ALWAYS = frozenset({"errors", "process", "string", "table", "math", "coroutine", "os", "utf8", "print"})
"""Tables that need no granting."""

KNOWN_MODULES = frozenset(DEFAULT_MODULES) | ALWAYS | {"http_client"}
"""Every module of lua-api.md section 3 that is in scope."""


class LuaState:
    """Loads a handler and its libraries, once; HandlerLoadError if that fails.

    `monotonic` is the clock of time limits, in seconds; `wall_clock` tells Unix nanoseconds.
    `false_is_failure`: see `entries.model.Consumer`. The memory limit does not count what the sandbox uses.
    """

    def __init__(
        self,
        handler: Handler,
        host: Host,
        *,
        identity: Identity,
        false_is_failure: bool = True,
        monotonic: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.handler = handler
        self.false_is_failure = false_is_failure
        self.monotonic = monotonic
        self.host = host
        self.callbacks = Callbacks(host, identity, wall_clock)
        self._current: Invocation | None = None
        self._lua = runtime = new_runtime()
        shared = self._shared(identity)
        run_prelude(runtime, shared)
        self.lua_start: Callable[..., Any] = shared[b"start"]
        self.lua_resume: Callable[..., Any] = shared[b"resume"]
        self.lua_abandon: Callable[[], None] = shared[b"abandon"]
        new_object = shared[b"new_object"]

        def table(value: Any) -> Any:
            return runtime.table_from(value, recursive=True)

        self.to_lua = self.callbacks.to_lua = lambda value: bridge.to_lua(value, table, new_object)
        try:
            runtime.set_max_memory(runtime.get_memory_used() + handler.memory_limit)
            self._load(shared)
        except MemoryError:
            raise HandlerLoadError(
                f"{handler.chunk_name}: loading needs more than the memory limit of"
                f" {handler.memory_limit} bytes: raise `memoryLimit`"
            ) from None

    def start(self, context: MessageContext, body: Any) -> Invocation:
        """Make the invocation for one message; nothing runs before its first step."""
        if self._current is not None and not self._current.over:
            raise RuntimeError("a Lua state handles one message at a time")
        self._current = Invocation(self, context, body)
        return self._current

    def close(self) -> None:
        """Drop the Lua state; its memory goes with the last reference."""
        self._current = None
        self._lua = None
        del self.lua_start, self.lua_resume, self.lua_abandon, self.to_lua, self.callbacks

    def _shared(self, identity: Identity) -> Any:
        table = self._lua.table_from
        encode = str.encode
        return table(
            {
                b"host": table(self.callbacks.exported()),
                b"env": table({encode(name): encode(value) for name, value in self.handler.env.items()}),
                b"kinds": table({encode(name): encode(value) for name, value in KINDS.items()}),
                b"known": table({encode(name): True for name in KNOWN_MODULES}),
                b"modules": table({}),
                b"all_granted": self.handler.modules is None,
                b"actor_id": encode(identity.consumer_id),
            }
        )

    def _load(self, shared: Any) -> None:
        handler = self.handler
        granted = DEFAULT_MODULES if handler.modules is None else handler.modules
        for name in granted:
            if name in KNOWN_MODULES and name not in ALWAYS:
                shared[b"grant"](name.encode())
        for name, (chunk, source) in handler.imports.items():
            shared[b"add_library"](name.encode(), chunk.encode(), source.encode())
        deadline = self.monotonic() + handler.timeout
        self.callbacks.interrupted = lambda: (
            timeout_error(handler.timeout) if self.monotonic() >= deadline else None
        )
        loaded = shared[b"load_handler"](
            handler.chunk_name.encode(),
            handler.source.encode(),
            handler.method.encode(),
            *(name.encode() for name in handler.imports),
        )
        if isinstance(loaded, tuple):
            raise HandlerLoadError(self._load_failure(loaded[1]))

    def _load_failure(self, value: Any) -> str:
        if isinstance(value, HandlerError):
            return f"{self.handler.chunk_name}: {': '.join((*value.contexts, value.text))}"
        return bridge.shown(value)
