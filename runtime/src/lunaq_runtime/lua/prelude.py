"""Starts a sandboxed Lua runtime and runs the prelude in it; used by `state` and `check`."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from lupa.lua54 import LuaRuntime

FILES = (
    "sandbox",
    "serve",
    "scheduler",
    "ahead",
    "shapes",
    "patterns",
    "strings",
    "tables",
    "encode",
    "errors",
    "alarms",
    "tasks",
    "channel",
    "queue",
    "modules",
    "store",
    "digests",
    "metrics",
    "http",
    "time",
    "calendar",
    "layouts",
    "timers",
    "funcs",
    "stdlib",
    "loader",
)
"""In this order: each uses what the ones before left in the shared table."""

UNSEEN = "serve"
"""The file whose functions are not to show where they stand, wherever a handler looks."""


@cache
def source_of(name: str) -> bytes:
    """Read one file of the prelude."""
    return (resources.files("lunaq_runtime.lua") / "prelude" / f"{name}.lua").read_bytes()


def _no_attribute(_object: object, name: str, _setting: bool) -> str:  # noqa: FBT001 - lupa calls it so
    raise AttributeError(f"attribute {name!r} is not reachable from Lua")


def new_runtime() -> Any:
    """Make a bare runtime that counts its memory; strings are bytes at the boundary."""
    return LuaRuntime(
        encoding=None,
        unpack_returned_tuples=True,
        register_eval=False,
        register_builtins=False,
        attribute_filter=_no_attribute,
        max_memory=0,
    )


_compiled: dict[str, bytes] = {}
"""The prelude's files as bytecode: compiling them takes longer than all else that makes a state."""


def run_prelude(runtime: Any, shared: Any) -> None:
    """Run the prelude's files with the table `shared`, through which they find each other."""
    lua = runtime.globals()
    load, dump = lua[b"load"], lua[b"string"][b"dump"]
    # Nearly all that a state holds is here to stay, and need not be looked at for each message's garbage.
    lua[b"collectgarbage"](b"generational")
    for name in FILES:
        if name not in _compiled:
            _compiled[name] = dump(load(source_of(name), b"=[lunaq]", b"t"), name == UNSEEN)
        load(_compiled[name], b"=[lunaq]", b"b")(shared)
