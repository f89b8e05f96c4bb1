"""Sandboxed Lua states, at most one per slot; the worker makes them and starts invocations in them.

A state handles one message at a time. Its globals and module-level locals survive between messages. It may
be used from any thread, by one at a time; `Invocation.interrupt` alone may be called from another.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lunaq_runtime import limits
from lunaq_runtime.lua import bridge
from lunaq_runtime.lua.callbacks import Callbacks
from lunaq_runtime.lua.check import explain
from lunaq_runtime.lua.errors import KINDS, HandlerError, HandlerLoadError
from lunaq_runtime.lua.host import Host, Identity, MessageContext
from lunaq_runtime.lua.invocation import OUT_OF_MEMORY, Invocation, timeout_error
from lunaq_runtime.lua.memory import MemoryGuard, size_of
from lunaq_runtime.lua.modules.services import Services
from lunaq_runtime.lua.prelude import new_runtime, run_prelude
from lunaq_runtime.lua.shapes import Shapes

if TYPE_CHECKING:
    from collections.abc import Callable

    from lunaq_runtime.entries.model import Function, Handler

__all__ = ["HandlerLoadError", "Host", "Identity", "Invocation", "LuaState", "MessageContext", "NoRoomError"]

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

ALWAYS = frozenset(
    {"channel", "errors", "process", "string", "table", "math", "coroutine", "os", "utf8", "print"}
)
"""Tables that need no granting."""

KNOWN_MODULES = frozenset(DEFAULT_MODULES) | ALWAYS | {"http_client"}
"""Every module of lua-api.md section 3 that is in scope."""


class NoRoomError(Exception):
    """There is no room for the bodies of a batch at once."""


class LuaState:
    """Loads a handler and its libraries, once; HandlerLoadError if that fails.

    `monotonic` is the clock of time limits, in seconds; `wall_clock` tells Unix nanoseconds.
    `services` is what it shares with the process' other states, by default nothing.
    `false_is_failure`: see `entries.model.Consumer`. The memory limit does not count what the sandbox uses.
    """

    __slots__ = (
        "__weakref__",
        "_convert",
        "_current",
        "_lua",
        "_lua_run_ahead",
        "_runs_ahead",
        "_shapes",
        "callbacks",
        "false_is_failure",
        "handler",
        "host",
        "lua_abandon",
        "lua_deliver",
        "lua_go_on",
        "lua_pending",
        "lua_resume",
        "lua_start",
        "lua_start_batch",
        "memory",
        "monotonic",
        "pack",
    )

    def __init__(
        self,
        handler: Handler,
        host: Host,
        *,
        identity: Identity,
        false_is_failure: bool = True,
        monotonic: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], int] = time.time_ns,
        services: Services | None = None,
    ) -> None:
        self.handler = handler
        self.false_is_failure = false_is_failure
        self.monotonic = monotonic
        self.host = host
        self._current: Invocation | None = None
        self._lua = runtime = new_runtime()
        self.memory = MemoryGuard(runtime)
        self.callbacks = Callbacks(host, identity, wall_clock, monotonic, services or Services())
        self.callbacks.bind(self.to_lua, self.memory)
        shared = self._shared(identity)
        run_prelude(runtime, shared)
        self.lua_start: Callable[..., Any] = shared[b"start"]
        self.lua_start_batch: Callable[..., Any] = shared[b"start_batch"]
        self.lua_resume: Callable[..., Any] = shared[b"resume"]
        self.lua_abandon: Callable[[], None] = shared[b"abandon"]
        self.lua_pending: Callable[[int], Any] = shared[b"pending"]
        self.lua_deliver: Callable[..., None] = shared[b"deliver"]
        self.lua_go_on: Callable[[], Any] = shared[b"go_on"]
        self._lua_run_ahead: Callable[[bool], None] = shared[b"run_ahead"]
        self._runs_ahead = False
        self._convert = _converter(runtime, self.memory, shared[b"new_object"])
        self._shapes = Shapes(shared[b"shape"], self._convert, self.memory)
        # Appends a body for `start_batch`; False for one to be started by itself, from which `begin` learns.
        self.pack: Callable[[Any, list[Any]], bool] = self._shapes.pack
        self._grant(shared)
        self.memory.collect_with(shared[b"collect"])
        self.memory.limit_to(handler.memory_limit)
        self._load(shared)

    def to_lua(self, value: Any) -> Any:
        """Convert plain data for handing over; the tables are made without a limit, then `fit` judges."""
        if value is None or value is True or value is False:
            return value
        return self._convert(value)

    def run_ahead(self, may: bool) -> None:  # noqa: FBT001 - it is what it says
        """Let runs from the next one on go ahead of the confirms of their publishes, or not."""
        if may is not self._runs_ahead:
            self._lua_run_ahead(may)
            self._runs_ahead = may

    def begin(self, body: Any, size: int | None) -> Any:
        """Start the handler on a body, whose texts have `size` bytes at most, if that is known.

        Returns what Lua yields or returns; ValueError for a body that Lua cannot hold, MemoryError for one
        that is beyond the limit.
        """
        if body.__class__ is dict and (shape := self._shapes.shape(body)):
            try:
                arguments = self._shapes.arguments(body)
            except UnicodeEncodeError:  # half a surrogate pair, which needs the long way
                pass
            else:
                if not self.memory.fit(self._shapes.room(arguments, size)):
                    raise MemoryError
                return shape[0](*arguments)
        value = self.to_lua(body)
        if not self.memory.fit(size_of(value)):
            raise MemoryError
        return self.lua_start(value)

    def start_batch(
        self, count: int, bodies: list[Any], size: int, turn: Callable[[int], bool]
    ) -> tuple[int, Any]:
        """Start the handler on `count` bodies, one after the other, until one does more than succeed.

        Args:
            count: how many there are.
            bodies: what `pack` made of them, in the order in which they are handled.
            size: of the texts in them.
            turn: called with a message's place, counted from 1, before Python does anything on its behalf,
                and again where it takes long; it returns whether this message is to be the last.

        Returns:
            The place of the message that did more than succeed and what Lua came to there, as `begin` returns
            it; or 0 and the place of the last one where all succeeded.

        Raises:
            NoRoomError: none has been started.
        """
        if not self.memory.fit(self._shapes.room(bodies, size)):
            raise NoRoomError
        self.callbacks.turn = turn
        try:
            outcome = self.lua_start_batch(count, *bodies)
        finally:
            self.callbacks.turn = None
        place, *rest = outcome if isinstance(outcome, tuple) else (outcome,)
        if place is None:
            return 0, rest[0]
        if not place:
            raise NoRoomError
        return place, tuple(rest) if len(rest) > 1 else rest[0] if rest else None

    def start(self, context: MessageContext, body: Any, size: int | None = None) -> Invocation:
        """Make the invocation for one message, of `size` bytes; nothing runs before its first step."""
        if self._current is not None:
            raise RuntimeError("a Lua state handles one message at a time")
        self._current = invocation = Invocation(self, context, body, size)
        return invocation

    def finished(self) -> None:
        """Forget the invocation; called by it at its end."""
        self._current = None
        self.callbacks.end()

    def close(self) -> None:
        """Drop the Lua state; its memory goes with the last reference."""
        self._current = None
        self._lua = None
        del (
            self.lua_start,
            self.lua_start_batch,
            self.lua_resume,
            self.lua_abandon,
            self._convert,
            self._shapes,
            self.pack,
            self.callbacks,
        )
        del self.lua_pending, self.lua_deliver, self.lua_go_on, self._lua_run_ahead

    def _shared(self, identity: Identity) -> Any:
        table = self._lua.table_from
        encode = str.encode
        functions = self.handler.functions.items()
        return table(
            {
                b"host": table(self.callbacks.exported()),
                b"env": table({encode(name): encode(value) for name, value in self.handler.env.items()}),
                b"kinds": table({encode(name): encode(value) for name, value in KINDS.items()}),
                b"modules": table({}),
                b"limits": table(
                    {
                        b"body": limits.MAX_BODY,
                        b"depth": limits.MAX_DEPTH,
                        b"fields": limits.MAX_LOG_RECORD,
                        b"pattern_steps": limits.PATTERN_STEPS,
                    }
                ),
                b"functions": table({_encoded(name): self._function(each) for name, each in functions}),
                b"actor_id": encode(identity.consumer_id),
            }
        )

    def _function(self, function: Function) -> Any:
        """Describe a function to the prelude, which loads it when it is first called."""
        table = self._lua.table_from
        imports = [
            table({b"name": name.encode(), b"chunk": _encoded(chunk), b"source": _encoded(source)})
            for name, (chunk, source) in function.imports.items()
        ]
        return table(
            {
                b"chunk": _encoded(function.chunk_name),
                b"source": _encoded(function.source),
                b"method": _encoded(function.method),
                b"modules": table(_granted(function.modules)),
                b"imports": table(imports),
            }
        )

    def _grant(self, shared: Any) -> None:
        for module in _granted(self.handler.modules):
            shared[b"grant"](module)
        for name, library in self.handler.imports.items():
            shared[b"add_library"](name.encode(), *map(_encoded, library))

    def _load(self, shared: Any) -> None:
        handler = self.handler
        monotonic = self.monotonic
        deadline = monotonic() + handler.timeout
        late = timeout_error(handler.timeout)
        self.callbacks.begin(None, lambda: late if monotonic() >= deadline else None)
        arguments = (handler.chunk_name, handler.source, handler.method, *handler.imports)
        encoded = tuple(map(_encoded, arguments))
        if not self.memory.fit(size_of(encoded)):
            raise HandlerLoadError(self._load_failure(OUT_OF_MEMORY))
        loaded = shared[b"load_handler"](*encoded)
        self.callbacks.end()
        if isinstance(loaded, tuple):
            _, value, _, raises = loaded
            if self.callbacks.out_of_memory:
                value, raises = OUT_OF_MEMORY, 0
            raise HandlerLoadError(self._load_failure(late if raises else value))

    def _load_failure(self, value: Any) -> str:
        handler = self.handler
        if value == OUT_OF_MEMORY:
            limit = handler.memory_limit
            return f"{handler.chunk_name}: loading needs more than its {limit} bytes: raise `memoryLimit`"
        message = value.text if isinstance(value, HandlerError) else bridge.shown(value)
        for chunk, source in (*handler.imports.values(), (handler.chunk_name, handler.source)):
            if message.startswith(f"{chunk}:"):
                return explain(message, source)
        return f"{handler.chunk_name}: {message}"


def _converter(runtime: Any, memory: MemoryGuard, new_object: Callable[[], Any]) -> Callable[[Any], Any]:
    """Make the function that makes Lua values of plain data; it refers to no state."""

    def table(value: Any) -> Any:
        return runtime.table_from(value, recursive=True)

    def convert(value: Any) -> Any:
        memory.lift()
        try:
            return bridge.to_lua(value, table, new_object)
        finally:
            memory.fit()

    return convert


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _granted(modules: tuple[str, ...] | None) -> list[bytes]:
    names = DEFAULT_MODULES if modules is None else modules
    return [name.encode() for name in names if name in KNOWN_MODULES - ALWAYS]
