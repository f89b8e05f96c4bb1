"""Finds deliveries and confirms in a stream of AMQP 0-9-1 frames, in one pass and without decoding them.

Pure: bytes in, plain tuples out. `tap` feeds it what the socket gives; all frames that are nobody's business
here come out again whole, for aiormq. A message that arrives whole in one chunk and is like the one before,
as nearly all are, takes the fast path (`_run`); others are put together frame by frame.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct, error

METHOD_FRAME, HEADER_FRAME, BODY_FRAME, HEARTBEAT_FRAME = 1, 2, 3, 8
FRAME_END = 0xCE
FRAME_OVERHEAD = 8
"""Bytes of a frame beside its payload: type, channel, size, end."""

DELIVER, RETURN, ACK, NACK = 0x3C003C, 0x3C0032, 0x3C0050, 0x3C0078
CHANNEL_CLOSE, CHANNEL_CLOSE_OK = 0x140028, 0x140029
BLOCKED, UNBLOCKED = 0x0A003C, 0x0A003D

Record = tuple[int, int, bytes, bytes, int]
"""A delivery: tag, redelivered (0 or 1), body, head (its method and header frames), and where in the head the
values of its properties begin; the two bytes before that are the flags of which are set."""

Event = tuple[int, int, int, bytes, bytes]
"""Of a publish: ACK or NACK, its tag, 1 if it stands for all earlier ones too, nothing, nothing; or RETURN,
0, where the properties begin, the head, the body. A return stands before the confirm of its publish."""

_METHOD = Struct(">BHII").unpack_from  # type, channel, size, class and method
_HEADER = Struct(">BHIIQ").unpack_from  # type, channel, size, class and weight, body size
_FRAME = Struct(">BHI").unpack_from
_TAG = Struct(">QB").unpack_from
_TAG_BYTES = 9
_LONG = Struct(">Q").unpack_from
_MARK = Struct(">BBH").pack  # the end of a frame; type and channel of the next
_BODY_MARK = Struct(">BBHI").pack  # the same, and its size
_LONGEST_LOGIN_FRAME = 1 << 20
_NO_LIMIT = 1 << 32
_METHOD_BYTES = 4
_PROPERTIES_AT = 21  # bytes of a header frame before the values: frame, class, weight, body size, flags
_LEAST_HEADER = _PROPERTIES_AT + 1


@lru_cache(maxsize=1024)
def _layout(names: int) -> Struct:
    """Lay out what follows the consumer tag: tag, redelivered, exchange and key, then the header frame."""
    return Struct(f">QB{names}x4sI4xQ")  # with the end of the method frame, and the header's size


class ScanError(ValueError):
    """The stream is not AMQP any more; nothing after it can be trusted."""


class Scanner:
    """Sorts one connection's incoming bytes.

    Attributes:
        deliveries: by channel, the list that deliveries on it are appended to; other channels' go on.
        confirms: by channel, the same for confirms and returns.
        closed: channels whose Close or CloseOk came by, in order; the frames went on as well.
        blocked: whether the broker last said `connection.blocked`.
        frame_max: the most bytes of a frame, as agreed at login; 0 is no limit.
    """

    def __init__(self) -> None:
        self.deliveries: dict[int, list[Record]] = {}
        self.confirms: dict[int, list[Event]] = {}
        self.closed: list[int] = []
        self.blocked = False
        self.frame_max = _LONGEST_LOGIN_FRAME
        self._rest = bytearray()
        self._need = 0
        self._open: dict[int, _Content] = {}
        self._started = False
        self._foreign = False

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; returns whole frames that were not taken. ScanError if it is not AMQP."""
        try:
            return self._scan(data)
        except (IndexError, error) as cause:
            raise ScanError("a frame is too short for what it says it is") from cause

    def _scan(self, data: bytes) -> bytes:  # noqa: C901, PLR0912 - calls cost a message's time again
        if self._rest:
            self._rest += data
            if len(self._rest) < self._need:
                return b""
            data = bytes(self._rest)
            self._rest = bytearray()
        if not self._started and self._unknown(data):
            return data
        deliveries = self.deliveries
        longest = self.frame_max - FRAME_OVERHEAD if self.frame_max else _NO_LIMIT
        others: list[bytes] = []
        position, end = 0, len(data)
        need = FRAME_OVERHEAD
        while end - position >= FRAME_OVERHEAD:
            if end - position > FRAME_OVERHEAD + 2:
                kind, channel, size, method = _METHOD(data, position)
            else:
                (kind, channel, size), method = _FRAME(data, position), 0
            after = position + size + FRAME_OVERHEAD
            if size > longest:
                raise ScanError(f"a frame of {size} bytes is longer than the agreed {longest}")
            if after > end:
                need = size + FRAME_OVERHEAD
                break
            if data[after - 1] != FRAME_END:
                raise ScanError("a frame does not end where it should")
            if kind == METHOD_FRAME:
                if method == DELIVER and (sink := deliveries.get(channel)) is not None:
                    ahead = position
                    if not self._open:
                        position = self._run(data, position, channel, size, longest, sink)
                    if position > ahead:
                        continue
                    self._begin(channel, data[position:after], sink, None)
                elif (events := self.confirms.get(channel)) is not None and method in (ACK, NACK):
                    tag, bits = _TAG(data, position + 11)
                    events.append((method, tag, bits & 1, b"", b""))
                elif events is not None and method == RETURN:
                    self._begin(channel, data[position:after], None, events)
                else:
                    self._pass_by(channel, size, method)
                    others.append(data[position:after])
            elif kind in (HEADER_FRAME, BODY_FRAME) and channel in self._open:
                self._continue(kind, channel, data[position:after])
            elif kind in (HEADER_FRAME, BODY_FRAME, HEARTBEAT_FRAME):
                others.append(data[position:after])
            else:
                raise ScanError(f"there is no frame of type {kind}")
            position = after
        if position < end:
            self._rest += memoryview(data)[position:]
            self._need = need
        return b"".join(others)

    def _run(
        self, data: bytes, position: int, channel: int, size: int, longest: int, sink: list[Record]
    ) -> int:
        """Take deliveries for as long as they are whole and like the first; tells where they end.

        Alike are those of one consumer whose method frames have the same length: then the next one's tag, and
        all of its header that matters, stand at known places.
        """
        # Type, channel, size, class and method, consumer tag: equal in all of them.
        same = 12 + data[position + 11]
        prefix = data[position : position + same]
        layout = _layout(size + 7 - same - _TAG_BYTES)
        unpack, needed = layout.unpack_from, layout.size
        mark = _MARK(FRAME_END, HEADER_FRAME, channel)
        body_mark = int.from_bytes(_BODY_MARK(FRAME_END, BODY_FRAME, channel, 0))
        to_values = size + FRAME_OVERHEAD + _PROPERTIES_AT
        to_body = size + 2 * FRAME_OVERHEAD + 7
        end = len(data)
        append = sink.append
        while data[position : position + same] == prefix and position + same + needed <= end:
            tag, redelivered, found, header, length = unpack(data, position + same)
            body = position + to_body + header
            last = body + length
            if (
                found != mark
                or header < _LEAST_HEADER - FRAME_OVERHEAD
                or header > longest
                or not 0 < length <= longest
                or last >= end
                or _LONG(data, body - 8)[0] != body_mark + length
                or data[last] != FRAME_END
            ):
                break
            append((tag, redelivered, data[body:last], data[position : body - 7], to_values))
            position = last + 1
        return position

    def _unknown(self, data: bytes) -> bool:
        """Tell whether this never was AMQP (a protocol header, HTTP): then aiormq says what it is."""
        if data and not self._foreign:
            self._foreign = data[0] not in (METHOD_FRAME, HEADER_FRAME, BODY_FRAME, HEARTBEAT_FRAME)
            self._started = not self._foreign
        return self._foreign

    def _pass_by(self, channel: int, size: int, method: int) -> None:
        """Note what aiormq will be told of, before it is."""
        if size < _METHOD_BYTES:
            raise ScanError("a method frame has no method")
        if method in (CHANNEL_CLOSE, CHANNEL_CLOSE_OK):
            self._open.pop(channel, None)
            self.closed.append(channel)
        elif method in (BLOCKED, UNBLOCKED) and channel == 0:
            self.blocked = method == BLOCKED
        elif channel in self._open:
            raise ScanError("a method stands in the middle of a message")

    def _begin(
        self, channel: int, frame: bytes, sink: list[Record] | None, events: list[Event] | None
    ) -> None:
        if channel in self._open:
            raise ScanError("a message begins in the middle of another")
        self._open[channel] = _Content(frame, sink, events)

    def _continue(self, kind: int, channel: int, frame: bytes) -> None:
        content = self._open[channel]
        if content.take(kind, frame):
            del self._open[channel]
            content.finish()


class _Content:
    """A delivery or return whose frames come one by one."""

    __slots__ = ("_at", "_events", "_head", "_missing", "_parts", "_sink")

    def __init__(self, method: bytes, sink: list[Record] | None, events: list[Event] | None) -> None:
        self._head = method
        self._at = 0
        self._parts: list[bytes] = []
        self._missing = -1
        self._sink = sink
        self._events = events

    def take(self, kind: int, frame: bytes) -> bool:
        """Add a frame; true once the message is whole."""
        if (kind == HEADER_FRAME) != (self._missing < 0):
            raise ScanError("the frames of a message are out of order")
        if kind == BODY_FRAME:
            self._parts.append(frame[7:-1])
            self._missing -= len(frame) - FRAME_OVERHEAD
            if self._missing < 0:
                raise ScanError("a body is longer than announced")
            return self._missing == 0
        if len(frame) < _LEAST_HEADER:
            raise ScanError("a message's header is too short")
        self._missing = _HEADER(frame)[4]
        self._at = len(self._head) + _PROPERTIES_AT
        self._head += frame
        return self._missing == 0

    def finish(self) -> None:
        """Hand the whole message over."""
        body = b"".join(self._parts)
        if self._sink is not None:
            tag, redelivered = _TAG(self._head, 12 + self._head[11])
            self._sink.append((tag, redelivered, body, self._head, self._at))
        if self._events is not None:
            self._events.append((RETURN, 0, self._at, self._head, body))
