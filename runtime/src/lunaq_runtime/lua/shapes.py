"""Hands a message's body to its handler with as few steps as possible; used by `state`.

Most messages of a queue have the same keys. For each such shape there are two Lua functions that build the
table from its values (prelude/shapes.lua), three times as fast as lupa fills one: one starts the handler on
it, the other is for several messages in one call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from lunaq_runtime.lua.memory import MemoryGuard

MAX_KEYS = 40
MAX_KEY_BYTES = 1024
"""Of all keys of a shape: what is learnt stays in memory, beside what the limit counts."""

MAX_SHAPES = 64
"""How many shapes a state learns; a handler of more is served as well, and a little slower."""

_MAX_CANDIDATES = 256
_VALUE = 64
"""Bytes that Lua may need for a value beside its text."""
_BITS = 64
_MIN_INTEGER = -(2**63)
_PLAIN = frozenset({bool, float, type(None), bytes})


Shape = tuple["Callable[..., Any]", int]
"""The starter of bodies with the same keys, and the number of their builder."""


class Shapes:
    """The shapes of one Lua state. `make` is the prelude's `S.shape`, `table` converts a container.

    Neither may refer to the state: it has to go with the last reference to it.
    """

    __slots__ = (
        "_candidates",
        "_known",
        "_make",
        "_memory",
        "_table",
    )

    def __init__(self, make: Callable[..., Any], table: Callable[[Any], Any], memory: MemoryGuard) -> None:
        self._make = make
        self._table = table
        self._memory = memory
        self._known: dict[tuple[Any, ...], Shape] = {}
        self._candidates: set[int] = set()

    def pack(self, body: Any, into: list[Any]) -> bool:
        """Append the number of a body's builder and its values; False, and nothing, where none is known."""
        if body.__class__ is not dict or not (shape := self._known.get(tuple(body))):
            return False
        try:
            values = self.arguments(body)
        except ValueError:
            return False
        into.append(shape[1])
        into += values
        return True

    def shape(self, body: dict[Any, Any]) -> Shape | None:
        """Find the Lua functions for a body of these keys; None: there are none."""
        keys = tuple(body)
        return self._known.get(keys) or self._learn(keys)

    def arguments(self, body: dict[Any, Any]) -> list[Any]:
        """Convert the values of a body; ValueError where one is not for Lua."""
        convert = self._convert
        return [
            value.encode()
            if (kind := value.__class__) is str
            else value
            if kind in _PLAIN or (kind is int and value.bit_length() < _BITS)
            else convert(value)
            for value in body.values()
        ]

    def room(self, arguments: list[Any], size: int | None) -> int:
        """Tell how many bytes handing over may need; `size` are those of all texts, if known."""
        if size is None:
            size = sum([len(one) for one in arguments if one.__class__ is bytes])
        return size + _VALUE * len(arguments)

    def _convert(self, value: Any) -> Any:
        if value.__class__ is int:
            return value if value == _MIN_INTEGER else float(value)  # beyond what Lua has
        return self._table(value)

    def _learn(self, keys: tuple[Any, ...]) -> Shape | None:
        """Learn a shape that is seen for the second time, so that ever new ones cost nothing."""
        if not 0 < len(keys) <= MAX_KEYS or len(self._known) >= MAX_SHAPES:
            return None
        fingerprint = hash(keys)
        if fingerprint not in self._candidates:
            if len(self._candidates) >= _MAX_CANDIDATES:
                self._candidates.clear()
            self._candidates.add(fingerprint)
            return None
        if not all(key.__class__ is str for key in keys):
            return None
        encoded = [key.encode("utf-8", "surrogateescape") for key in keys]
        if sum(map(len, encoded)) > MAX_KEY_BYTES:
            return None
        shape: Shape = self._memory.beside(lambda: self._make(*encoded))
        self._known[keys] = shape
        return shape
