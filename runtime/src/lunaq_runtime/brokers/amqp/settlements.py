"""Which delivery tags of one channel are settled, and the fewest frames that say so. Pure; `intake` uses it.

A `multiple` ack up to the highest tag below which all is settled, single ones beyond it, and single nacks,
which go first: a `multiple` ack must not cover them.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lunaq_runtime.message import Delivery

_SETTLE = Struct(">BHIIQBB").pack  # frame type, channel, size, method, tag, bits, frame end
_SIZE, _END = 13, 0xCE
FRAME_SIZE = _SIZE + 8
"""Bytes that say one thing."""
_ACK, _NACK = 0x3C0050, 0x3C0078
_MULTIPLE, _REQUEUE = 1, 2


class Settlements:
    """The tags of one channel; tags rise by one from 1.

    `generation` is that of the deliveries; others are skipped. So are tags that were never delivered or are
    settled already, for either would make the broker close the channel.

    Attributes:
        delivered: the highest tag that has arrived.
    """

    def __init__(self, channel: int, generation: int) -> None:
        self._channel = channel
        self._generation = generation
        self.delivered = 0
        self._mark = 1  # the lowest tag that is not settled
        self._beyond: set[int] = set()  # settled, but above the mark
        self._acked: list[int] = []  # settled, but not yet said
        self._nacked: list[int] = []

    @property
    def unsaid(self) -> bool:
        """Whether there is anything to say."""
        return bool(self._acked or self._nacked)

    def add(self, ack: Sequence[Delivery], requeue: Sequence[Delivery]) -> None:
        """Note what is settled; `frames` says it."""
        if requeue:
            self._settle(requeue, self._nacked)
        if not self._beyond:
            ack = ack[self._in_order(ack) :]
        if ack:
            self._settle(ack, self._acked)
        beyond, mark = self._beyond, self._mark
        while mark in beyond:
            beyond.remove(mark)
            mark += 1
        self._mark = mark

    def frames(self) -> bytes:
        """Say everything that was added since the last time."""
        channel = self._channel
        parts = [_SETTLE(1, channel, _SIZE, _NACK, tag, _REQUEUE, _END) for tag in sorted(self._nacked)]
        if self._acked:
            mark = self._mark
            # The last tag named must still be unsettled to the broker, so it is one of these.
            covered = max((tag for tag in self._acked if tag < mark), default=0)
            if covered:
                parts.append(_SETTLE(1, channel, _SIZE, _ACK, covered, _MULTIPLE, _END))
            parts += [
                _SETTLE(1, channel, _SIZE, _ACK, tag, 0, _END) for tag in sorted(self._acked) if tag >= mark
            ]
        self._acked.clear()
        self._nacked.clear()
        return b"".join(parts)

    def _in_order(self, ack: Sequence[Delivery]) -> int:
        """Move the mark over what is acked in the order of delivery; tells how many those are."""
        first = mark = self._mark
        generation, delivered = self._generation, self.delivered
        for delivery in ack:
            if delivery.tag != mark or delivery.generation != generation or mark > delivered:
                break
            mark += 1
        if mark > first:
            self._mark = mark
            self._acked.append(mark - 1)  # stands for them all
        return mark - first

    def _settle(self, deliveries: Iterable[Delivery], said: list[int]) -> None:
        mark, delivered, beyond = self._mark, self.delivered, self._beyond
        for delivery in deliveries:
            tag = delivery.tag
            if mark <= tag <= delivered and delivery.generation == self._generation and tag not in beyond:
                beyond.add(tag)
                said.append(tag)
