"""Says whether a handler's Lua compiles, without running it; for the operator and `lunaq check`.

A state that loads a handler uses the same words (`explain`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lunaq_runtime.lua.bridge import shown
from lunaq_runtime.lua.memory import MemoryGuard
from lunaq_runtime.lua.prelude import new_runtime

if TYPE_CHECKING:
    from lunaq_runtime.entries.model import Handler

_MEMORY_LIMIT = 64 * 1024 * 1024
_POSITION = re.compile(r":(\d+): ")
_ANNOTATION = re.compile(
    r"local\s+\w+\s*:\s*[\w{(]"  # local x: number
    r"|function[^(]*\([^)]*\w\s*:\s*[\w{(]"  # function f(x: number)
    r"|function[^(]*\([^)]*\)\s*:\s*[\w{(]"  # function f(): number
    r"|^\s*(?:export\s+)?type\s+\w+"  # type T = ...
    r"|^\s*interface\s+\w+"
    r"|\s::\s*\w+(?!\s*::)"  # x :: T; a label is closed by a second ::
    r"|\w\s+as\s+\w"
)


def load_error(handler: Handler) -> str | None:
    """Compile the handler's chunk and its libraries; None, or the first error with chunk name and line."""
    runtime = new_runtime()
    MemoryGuard(runtime).limit_to(_MEMORY_LIMIT)
    load = runtime.globals()[b"load"]
    for chunk, source in (*handler.imports.values(), (handler.chunk_name, handler.source)):
        encoded = source.encode("utf-8", "surrogateescape")
        if len(encoded) > _MEMORY_LIMIT // 4:
            return f"{chunk}: the source has {len(encoded)} bytes: make it smaller"
        try:
            loaded = load(encoded, b"@" + chunk.encode(), b"t")
        except MemoryError:
            return f"{chunk}: compiling needs more than {_MEMORY_LIMIT} bytes: make it smaller"
        if isinstance(loaded, tuple):
            message = shown(loaded[1])
            return explain(message, source) if message.startswith(f"{chunk}:") else f"{chunk}: {message}"
    return None


def explain(message: str, source: str) -> str:
    """Add what to do to an error of Lua's compiler where a type annotation is the likely cause."""
    position = _POSITION.search(message)
    lines = source.splitlines()
    number = int(position[1]) if position else 0
    if 0 < number <= len(lines) and _ANNOTATION.search(lines[number - 1]):
        return f"{message} (type annotations are not supported: remove them from this line)"
    return message
