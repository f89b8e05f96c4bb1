"""A delivery that is decoded only as far as somebody looks at it.

`subscription` makes one of every record the scanner finds; the hot path asks for the body, the content type
and whether there are headers at all, none of which needs the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lunaq_runtime.brokers.amqp import decode
from lunaq_runtime.message import Delivery

if TYPE_CHECKING:
    from lunaq_runtime.message import Properties

_CONTENT_TYPE, _HEADERS = 0x80, 0x20  # in the higher byte of the flags
_MOST_KNOWN = 256
_TAG_AT = (
    11  # a deliver method: frame (7 bytes), class and method (4), consumer tag, delivery tag, redelivered
)
_known: dict[bytes, str] = {}


class AmqpDelivery(Delivery):
    """A Delivery over its raw method and header frames."""

    __slots__ = ("_at", "_decoded", "_head", "bare")

    bare: bool

    def __init__(  # the superclass's fields without its constructor: most are never asked for
        self, queue: str, generation: int, tag: int, redelivered: int, body: bytes, head: bytes, at: int
    ) -> None:
        self.queue = queue
        self.tag = tag
        self.body = body
        self.redelivered = redelivered == 1
        self.generation = generation
        self.bare = not head[at - 2] & _HEADERS
        self._head = head
        self._at = at
        self._decoded: Properties | None = None

    @property
    def properties(self) -> Properties:
        decoded = self._decoded
        if decoded is None:
            decoded = self._decoded = decode.properties(self._head, self._at)
        return decoded

    @property
    def exchange(self) -> str:
        return decode.short_text(self._head, self._exchange_at())[0]

    @property
    def routing_key(self) -> str:
        head, at = self._head, self._exchange_at()
        return decode.short_text(head, at + 1 + head[at])[0]

    @property
    def content_type(self) -> str | None:
        head, at = self._head, self._at
        try:
            # With the flags, which say whether there is one at all.
            return _known[head[at - 2 : at + 1 + head[at]]]
        except (KeyError, IndexError):
            return _content_type(head, at)

    def _exchange_at(self) -> int:
        return _TAG_AT + 1 + self._head[_TAG_AT] + 9


def _content_type(head: bytes, at: int) -> str | None:
    """Decode a content type, and remember it: there are few, unless somebody makes them up."""
    if not head[at - 2] & _CONTENT_TYPE:
        return None
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
    end = at + 1 + head[at]
    text = _known[head[at - 2 : end]] = head[at + 1 : end].decode("utf-8", "replace")
    return text
