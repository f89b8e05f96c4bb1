"""The scanner finds every delivery and confirm, however a stream is cut, and lets the rest pass whole."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from lunaq_runtime.brokers.amqp.frames import ACK, NACK, RETURN, ScanError, Scanner

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lunaq_runtime.brokers.amqp.frames import Event, Record

CONSUMERS, PUBLISHERS, OTHERS = (1, 2), (3, 4), (0, 7)
FRAME_MAX = 4096


@dataclass
class Stream:
    """Frames in order, and what a scanner should make of them."""

    frames: list[bytes] = field(default_factory=list)
    deliveries: dict[int, list[tuple[int, bool, bytes, str]]] = field(
        default_factory=lambda: {channel: [] for channel in CONSUMERS}
    )
    events: dict[int, list[tuple[int, int, bool, bytes]]] = field(
        default_factory=lambda: {channel: [] for channel in PUBLISHERS}
    )
    others: list[bytes] = field(default_factory=list)

    @property
    def data(self) -> bytes:
        return b"".join(self.frames)


def content(
    channel: int, method: commands.Basic.Deliver, body: bytes, piece: int, identity: str
) -> list[bytes]:
    header = ContentHeader(body_size=len(body), properties=commands.Basic.Properties(message_id=identity))
    pieces = [body[at : at + piece] for at in range(0, len(body), piece)]
    return [frame.marshal(one, channel) for one in (method, header, *(ContentBody(part) for part in pieces))]


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    """Messages on several channels, their frames interleaved, with all else that a broker sends between."""
    stream = Stream()
    ready: list[list[bytes]] = []
    for tag in range(1, draw(st.integers(0, 12)) + 1):
        kind = draw(
            st.sampled_from(["deliver", "deliver", "return", "confirm", "foreign", "heartbeat", "method"])
        )
        body = draw(st.binary(max_size=40) | st.integers(0, 9000).map(lambda size: b"b" * size))
        piece = draw(st.integers(1, FRAME_MAX - 8) if len(body) < 50 else st.just(FRAME_MAX - 8))
        identity = f"m-{tag}"
        match kind:
            case "deliver":
                channel = draw(st.sampled_from(CONSUMERS))
                redelivered = draw(st.booleans())
                key = draw(st.sampled_from(["", "k", "k" * 255]))
                method = commands.Basic.Deliver(
                    draw(st.sampled_from(["", "c", "c" * 255])), tag, redelivered, "x", key
                )
                ready.append(content(channel, method, body, piece, identity))
                stream.deliveries[channel].append((tag, redelivered, body, identity))
            case "return":
                channel = draw(st.sampled_from(PUBLISHERS))
                ready.append(
                    content(channel, commands.Basic.Return(312, "NO_ROUTE", "x", "k"), body, piece, identity)
                )
                stream.events[channel].append((RETURN, 0, False, body))
            case "confirm":
                channel = draw(st.sampled_from(PUBLISHERS))
                many, ack = draw(st.booleans()), draw(st.booleans())
                method = commands.Basic.Ack(tag, many) if ack else commands.Basic.Nack(tag, many)
                ready.append([frame.marshal(method, channel)])
                stream.events[channel].append((ACK if ack else NACK, tag, many, b""))
            case "foreign":
                method = commands.Basic.Deliver("c", tag, False, "x", "k")
                ready.append(content(draw(st.sampled_from(OTHERS)), method, body, piece, identity))
            case "heartbeat":
                ready.append([frame.marshal(Heartbeat(), 0)])
            case _:
                ready.append(
                    [frame.marshal(commands.Queue.DeclareOk("q", 1, 2), draw(st.sampled_from((1, 3, 7))))]
                )
    interleave(draw, stream, ready)
    return stream


def interleave(draw: st.DrawFn, stream: Stream, ready: list[list[bytes]]) -> None:
    """Mix the frames: those of one channel stay in order and together, as a broker sends them."""
    lanes: dict[int, list[list[bytes]]] = {}
    for frames in ready:
        channel = int.from_bytes(frames[0][1:3])
        lanes.setdefault(channel, []).append(frames)
    queues = {channel: [one for frames in parts for one in frames] for channel, parts in lanes.items()}
    taken = {*CONSUMERS, *PUBLISHERS}
    methods = {frame.marshal(commands.Queue.DeclareOk("q", 1, 2), channel) for channel in taken}
    while queues:
        channel = draw(st.sampled_from(sorted(queues)))
        one = queues[channel].pop(0)
        if not queues[channel]:
            del queues[channel]
        stream.frames.append(one)
        if channel not in taken or one in methods:
            stream.others.append(one)


def scanner() -> Scanner:
    made = Scanner()
    made.frame_max = FRAME_MAX
    for channel in CONSUMERS:
        made.deliveries[channel] = []
    for channel in PUBLISHERS:
        made.confirms[channel] = []
    return made


def chunks(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def feed(scan: Scanner, *pieces: bytes) -> None:
    for piece in pieces:
        scan.feed(piece)


def identity(head: bytes, at: int) -> str:
    assert head[at - 2 : at] == b"\x00\x80", "only the message id is set"
    return head[at + 1 : at + 1 + head[at]].decode()


def check(stream: Stream, pieces: Iterable[bytes]) -> None:
    scan = scanner()
    others = b"".join(scan.feed(piece) for piece in pieces)
    assert others == b"".join(stream.others)
    for channel, expected in stream.deliveries.items():
        records: list[Record] = scan.deliveries[channel]
        found = [
            (tag, redelivered == 1, body, identity(head, at)) for tag, redelivered, body, head, at in records
        ]
        assert found == expected
    for channel, wanted in stream.events.items():
        events: list[Event] = scan.confirms[channel]
        assert [
            (method, tag, method != RETURN and bool(many), body) for method, tag, many, _, body in events
        ] == wanted


@given(streams(), st.lists(st.integers(0, 100_000), max_size=30))
def test_every_message_is_found_however_the_stream_is_cut(stream: Stream, cuts: list[int]):
    check(stream, chunks(stream.data, cuts))


@given(streams())
def test_every_message_is_found_byte_by_byte(stream: Stream):
    check(
        stream,
        (stream.data[at : at + 1] for at in range(min(len(stream.data), 3000)))
        if len(stream.data) <= 3000
        else [stream.data],
    )


def a_delivery(body: bytes = b"hello", channel: int = 1) -> bytes:
    return b"".join(content(channel, commands.Basic.Deliver("c", 1, False, "x", "k"), body, 100, "m"))


def test_a_delivery_may_be_cut_anywhere():
    data = a_delivery() + a_delivery(b"") + a_delivery(b"x" * 250)
    for cut in range(len(data) + 1):
        scan = scanner()
        assert scan.feed(data[:cut]) + scan.feed(data[cut:]) == b""
        assert [record[2] for record in scan.deliveries[1]] == [b"hello", b"", b"x" * 250], cut


def ends(data: bytes) -> list[int]:
    """Find where the frames of `data` end."""
    found, at = [], 0
    while at < len(data):
        at += int.from_bytes(data[at + 3 : at + 7]) + 8
        found.append(at - 1)
    return found


@pytest.mark.parametrize("body", [b"hello", b"", b"x" * 250])
def test_a_frame_without_its_end_is_refused_wherever_it_stands(body: bytes):
    data = a_delivery(body) * 2 + frame.marshal(commands.Basic.Ack(1), 3) + frame.marshal(Heartbeat(), 0)
    for at in ends(data):
        for cut in (0, at, at + 1):
            broken = data[:at] + b"\x00" + data[at + 1 :]
            scan = scanner()
            with pytest.raises(ScanError, match="end"):
                feed(scan, broken[:cut], broken[cut:])


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("part", [1, 2, 3])
def test_a_frame_longer_than_agreed_is_refused_before_it_is_waited_for(part: int, whole: bool):  # noqa: FBT001 - a parameter
    long = b"\x01" * (FRAME_MAX - 7)
    data = {
        1: frame.marshal(commands.Connection.Blocked("x"), 0)[:3] + len(long).to_bytes(4) + long + b"\xce",
        2: a_delivery()[: ends(a_delivery())[0] + 1]
        + b"\x02\x00\x01"
        + len(long).to_bytes(4)
        + long
        + b"\xce",
        3: b"".join(content(1, commands.Basic.Deliver("c", 1, False, "x", "k"), long, len(long), "m")),
    }[part]
    scan = scanner()
    with pytest.raises(ScanError, match="longer"):
        scan.feed(data if whole else data[: -len(long)])
    scan = scanner()
    scan.frame_max = 0
    scan.feed(data[:-1])


@pytest.mark.parametrize(
    "frames",
    [
        [0, 2],  # a body before its header
        [0, 1, 1],  # two headers
        [0, 0],  # a message in the middle of another
        [0, 1, 2, 2],  # a longer body than announced, in two frames of which the second is too much
    ],
)
def test_frames_out_of_order_are_refused(frames: list[int]):
    parts = content(1, commands.Basic.Deliver("c", 1, False, "x", "k"), b"x" * 150, 100, "m")
    with pytest.raises(ScanError):
        scanner().feed(b"".join(parts[index] for index in frames))


def test_a_method_in_the_middle_of_a_message_is_refused():
    parts = content(1, commands.Basic.Deliver("c", 1, False, "x", "k"), b"x" * 150, 100, "m")
    with pytest.raises(ScanError, match="middle"):
        scanner().feed(parts[0] + frame.marshal(commands.Basic.CancelOk("c"), 1))


def test_a_whole_delivery_in_the_middle_of_a_message_is_refused():
    parts = content(1, commands.Basic.Deliver("c", 1, False, "x", "k"), b"x" * 150, 100, "m")
    with pytest.raises(ScanError, match="middle"):
        scanner().feed(parts[0] + parts[1] + a_delivery())


def test_a_channel_closed_in_the_middle_of_a_message_may_be_used_again():
    parts = content(1, commands.Basic.Deliver("c", 1, False, "x", "k"), b"x" * 150, 100, "m")
    close = frame.marshal(commands.Channel.Close(404, "NOT_FOUND", 0, 0), 1)
    scan = scanner()
    assert scan.feed(parts[0] + parts[1] + close) == close
    assert scan.closed == [1]
    assert scan.feed(a_delivery()) == b""
    assert [record[2] for record in scan.deliveries[1]] == [b"hello"]


def test_a_close_is_noted_and_passed_on():
    for method in (commands.Channel.Close(404, "NOT_FOUND", 0, 0), commands.Channel.CloseOk()):
        scan = scanner()
        data = frame.marshal(method, 2)
        assert scan.feed(data) == data
        assert scan.closed == [2]


def test_blocking_is_noted_and_passed_on():
    scan = scanner()
    blocked, unblocked = (
        frame.marshal(method, 0)
        for method in (commands.Connection.Blocked("low on memory"), commands.Connection.Unblocked())
    )
    assert scan.feed(blocked) == blocked
    assert scan.blocked
    assert scan.feed(unblocked) == unblocked
    assert not scan.blocked


@pytest.mark.parametrize(
    "answer", [b"AMQP\x00\x00\x09\x01", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x01\x00\x02"]
)
def test_a_server_that_speaks_something_else_is_left_to_aiormq(answer: bytes):
    scan = scanner()
    assert scan.feed(answer[:1]) + scan.feed(answer[1:]) == answer


def test_an_unknown_frame_later_on_is_refused():
    scan = scanner()
    scan.feed(frame.marshal(Heartbeat(), 0))
    with pytest.raises(ScanError, match="type 9"):
        scan.feed(b"\x09\x00\x00\x00\x00\x00\x00\xce")


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
def test_noise_is_passed_or_refused_and_nothing_else(noise: bytes, cuts: list[int]):
    scan = scanner()
    with contextlib.suppress(ScanError):
        for piece in chunks(frame.marshal(Heartbeat(), 0) + noise, cuts):
            scan.feed(piece)
