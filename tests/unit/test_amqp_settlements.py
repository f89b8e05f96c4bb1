"""Settlements against a model of what a broker makes of the frames: each delivery settled once, as said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, frame

from lunaq_runtime.brokers.amqp.settlements import Settlements
from lunaq_runtime.message import Delivery, Properties

if TYPE_CHECKING:
    from collections.abc import Iterable


class Channel:
    """A broker's side of a channel: it closes at a tag that is not outstanding, as RabbitMQ does."""

    def __init__(self) -> None:
        self.outstanding: dict[int, None] = {}
        self.acked: set[int] = set()
        self.requeued: set[int] = set()
        self.frames = 0

    def take(self, data: bytes) -> None:
        while data:
            size, channel, method = frame.unmarshal(data)
            data = data[size:]
            self.frames += 1
            assert channel == 5
            assert method.delivery_tag in self.outstanding, (
                "RabbitMQ closes the channel: unknown delivery tag"
            )
            tags = (
                [tag for tag in self.outstanding if tag <= method.delivery_tag]
                if method.multiple
                else [method.delivery_tag]
            )
            for tag in tags:
                del self.outstanding[tag]
            if isinstance(method, commands.Basic.Ack):
                self.acked.update(tags)
            else:
                assert isinstance(method, commands.Basic.Nack)
                assert method.requeue
                self.requeued.update(tags)


def deliveries(tags: Iterable[int], generation: int = 2) -> list[Delivery]:
    return [Delivery("q", tag, b"", Properties(), generation=generation) for tag in tags]


STEPS = st.lists(
    st.tuples(
        st.integers(0, 6),  # that many arrive
        st.lists(st.integers(1, 40), max_size=12),  # acked: known or unknown, new or repeated
        st.lists(st.integers(1, 40), max_size=4),  # requeued
        st.booleans(),  # whether the socket takes it at once
    ),
    max_size=14,
)


@given(STEPS)
def test_every_delivery_is_settled_once_and_as_was_said(steps: list[tuple[int, list[int], list[int], bool]]):
    channel, settlements = Channel(), Settlements(5, 2)
    acked: set[int] = set()
    requeued: set[int] = set()
    for arriving, ack, requeue, writable in steps:
        for _ in range(arriving):
            settlements.delivered += 1
            channel.outstanding[settlements.delivered] = None
        known = set(range(1, settlements.delivered + 1)) - acked - requeued
        requeued |= known & set(requeue)
        acked |= known & set(ack) - requeued
        settlements.add(deliveries(ack), deliveries(requeue))
        if writable:
            channel.take(settlements.frames())
            assert (channel.acked, channel.requeued) == (acked, requeued)
    channel.take(settlements.frames())
    assert (channel.acked, channel.requeued) == (acked, requeued)
    assert not settlements.unsaid


@given(st.lists(st.integers(1, 30), min_size=1))
def test_what_is_acked_in_order_takes_one_frame_a_batch(sizes: list[int]):
    channel, settlements = Channel(), Settlements(5, 2)
    settlements.delivered = sum(sizes)
    channel.outstanding = dict.fromkeys(range(1, sum(sizes) + 1))
    first = 1
    for size in sizes:
        settlements.add(deliveries(range(first, first + size)), ())
        channel.take(settlements.frames())
        first += size
    assert channel.frames == len(sizes)
    assert not channel.outstanding


def test_deliveries_of_another_generation_are_skipped():
    settlements = Settlements(5, 2)
    settlements.delivered = 3
    settlements.add(deliveries([1, 2], generation=1), deliveries([3], generation=3))
    assert settlements.frames() == b""
    assert not settlements.unsaid


def test_what_waits_for_the_socket_is_said_in_few_frames():
    channel, settlements = Channel(), Settlements(5, 2)
    settlements.delivered = 1000
    channel.outstanding = dict.fromkeys(range(1, 1001))
    for tag in reversed(range(1, 1001)):
        settlements.add(deliveries([tag]), ())
    assert len(settlements.frames()) == 21, "one frame"
    assert settlements.frames() == b""
