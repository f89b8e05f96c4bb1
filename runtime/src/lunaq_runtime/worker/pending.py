"""A request that a waiting handler has made, until it is answered, its time is up, or it is interrupted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from lunaq_runtime.lua.errors import HandlerError
    from lunaq_runtime.worker.slot import Slot

    Reply = tuple[Any, ...] | HandlerError


class Cancellable(Protocol):
    """A timer or a task."""

    def cancel(self) -> object:
        """Stop it."""


class Pending:
    """One request of `slot`; `answer` is called once at most, with what the Lua call returns,
    or with an error that ends the run.

    Whoever carries the request out calls `answer` or `wake`, and may do so after it was dropped.
    """

    __slots__ = ("_answer", "_slot", "work")

    def __init__(self, slot: Slot, answer: Callable[[Slot, Reply], None]) -> None:
        self._slot = slot
        self._answer = answer
        self.work: Cancellable | None = None

    def answer(self, reply: Reply) -> None:
        """Answer it, unless it is answered or dropped already."""
        slot = self._slot
        if slot.pending is self:
            slot.pending = None
            self._answer(slot, reply)

    def wake(self) -> None:
        """Answer a sleep."""
        self.answer(())

    def drop(self) -> None:
        """Nobody waits for it any more."""
        self._slot.pending = None
        if self.work:
            self.work.cancel()
