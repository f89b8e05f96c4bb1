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
_STRING_OR_COMMENT = re.compile(r"--.*|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|\[\[.*?\]\]")
_TYPE = r"(?:readonly\s+|typeof\b|keyof\b|fun\b)?[\w{(\"\[]"
_ANNOTATION = re.compile(
    rf"\blocal\s+\w+(?:\s*,\s*\w+)*\s*:\s*{_TYPE}"  # local x: number
    rf"|[(,]\s*(?:\w+|\.\.\.)\s*\??\s*:\s*{_TYPE}"  # function f(x: number, y?: number, ...: number)
    rf"|^\s*(?:\w+|\.\.\.)\s*\??\s*:\s*[\w{{(.<>| ?\[\]]+[,)]?\s*$"  # the same on a line of its own
    rf"|\)\s*:\s*{_TYPE}"  # function f(): number
    rf"|\)\s*:\s*(?:asserts\s+)?\w+\s+is\s+\w"  # function f(x): x is number
    r"|^\s*(?:export\s+)?type\s+\w+"  # type T = ...
    r"|^\s*interface\s+\w+"
    r"|\bfunction\b[^(]*<[^>]*>\s*\("  # function f<T>(x)
    r"|[\w)\]}]\s*::\s*[\w{(](?!\w*\s*::)"  # x :: T; a label is closed by a second ::
    r"|[\w)\]}\"']\s+as\s+[\w{(]"  # x as T
    r"|[\w)\]]!(?!=)"  # x!
)
"""Every form of lua-api.md 4.1's type syntax, in a line without its strings and comments."""


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
    if not 0 < number <= len(lines):
        return message
    if _annotated(lines[number - 1]):
        return f"{message} (type annotations are not supported: remove them from this line)"
    # After a cast at the end of a line, the compiler stumbles over the line that follows.
    before = number - 1
    while before > 0 and not lines[before - 1].strip():
        before -= 1
    if before > 0 and "::" in message and _annotated(lines[before - 1]):
        return f"{message} (type annotations are not supported: remove them from line {before})"
    return message


def _annotated(line: str) -> bool:
    return _ANNOTATION.search(_STRING_OR_COMMENT.sub('""', line)) is not None
