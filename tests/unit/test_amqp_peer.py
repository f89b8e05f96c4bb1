"""The AMQP hot path against a peer that says what a test wants: orders, losses, refusals at bad moments."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest
from pamqp import commands, frame

from harness.amqp_peer import Peer
from harness.amqp_publishing import Answers, confirm, connected, message, published, until, warm
from harness.pki import Pki
from lunaq_runtime.brokers.amqp import AmqpBroker
from lunaq_runtime.brokers.amqp import tap as tap_module
from lunaq_runtime.brokers.amqp.intake import BUSY, WIDE
from lunaq_runtime.brokers.amqp.tap import MOST_PIECE, PIECE, Tap

if TYPE_CHECKING:
    from pathlib import Path

    from lunaq_runtime.brokers.amqp.subscription import AmqpSubscription
    from lunaq_runtime.message import Delivery


# What comes back for a publish


async def test_confirms_are_matched_by_number_single_and_multiple(peer: Peer, broker: AmqpBroker):
    connection = await warm(peer, broker)
    answers = Answers(broker)
    for number in range(10):
        answers.publish(str(number))
    sent = await published(connection, 10)
    connection.confirm(sent[4])
    connection.confirm(sent[2], multiple=True, nack=True)
    await answers.all("4", "0", "1", "2")
    assert answers.reasons == {"4": None, "0": "nacked", "1": "nacked", "2": "nacked"}
    connection.confirm(sent[9], multiple=True)
    await answers.all("9")
    assert answers.reasons == {str(n): "nacked" if n < 3 else None for n in range(10)}


@pytest.mark.parametrize("multiple", [True, False])
async def test_a_returned_publish_is_told_from_one_of_the_same_message_id(
    peer: Peer,
    broker: AmqpBroker,
    multiple: bool,  # noqa: FBT001 - a parameter
):
    connection = await warm(peer, broker)
    answers = Answers(broker)
    same: dict[str, Any] = {"message_id": "same", "content_type": "text/plain"}
    answers.publish("routed", message(b"1", **same))
    answers.publish("returned", message(b"2", **same))
    answers.publish("other key", message(b"2", key="other", **same))
    answers.publish("other headers", message(b"2", headers={"n": 1}, **same))
    sent = await published(connection, 4)
    # In one write: a confirm that comes with the return must not overtake it.
    connection.give_back(sent[1])
    for one in sent[-1:] if multiple else sent:
        connection.confirm(one, multiple=multiple)
    assert await answers.all("routed", "returned", "other key", "other headers") == {
        "routed": None,
        "returned": "unroutable",
        "other key": None,
        "other headers": None,
    }
    assert "'k'" in answers.texts["returned"]


async def test_of_equal_messages_as_many_are_told_unroutable_as_were_returned(peer: Peer, broker: AmqpBroker):
    connection = await warm(peer, broker)
    answers = Answers(broker)
    names = [str(number) for number in range(5)]
    for name in names:
        answers.publish(name, message(b"equal", message_id="m"))
    sent = await published(connection, 5)
    for one in (sent[1], sent[3]):
        connection.give_back(one)
    connection.confirm(sent[4], multiple=True)
    told = list((await answers.all(*names)).values())
    assert sorted(told, key=str) == [None, None, None, "unroutable", "unroutable"]


async def test_a_return_that_the_broker_added_headers_to_finds_its_publish(peer: Peer, broker: AmqpBroker):
    connection = await warm(peer, broker)
    answers = Answers(broker)
    for name in ("a", "b"):
        answers.publish(name, message(b"", message_id=name))
    sent = await published(connection, 2)
    connection.give_back(sent[1], headers={"timestamp_in_ms": 1})
    connection.confirm(sent[1], multiple=True)
    assert await answers.all("a", "b") == {"a": None, "b": "unroutable"}


async def test_a_large_body_comes_back_in_many_frames(peer: Peer, broker: AmqpBroker):
    connection = await warm(peer, broker)
    answers = Answers(broker)
    body = bytes(range(256)) * 2000
    answers.publish("large", message(body))
    answers.publish("small")
    sent = await published(connection, 2)
    connection.say(sent[0].channel, commands.Basic.Return(312, "NO_ROUTE", "x", "k"))
    head = connection.delivery(sent[0].channel, body)
    # The content of a delivery is that of a return, behind another method.
    connection.raw(head[int.from_bytes(head[3:7]) + 8 :])
    connection.confirm(sent[1], multiple=True)
    assert await answers.all("large", "small") == {"large": "unroutable", "small": None}


# Writing


async def test_publishes_of_one_turn_leave_in_one_write(
    peer: Peer, broker: AmqpBroker, monkeypatch: pytest.MonkeyPatch
):
    await warm(peer, broker)
    peer.on_publish = confirm
    writes: list[int] = []
    write = Tap.write
    monkeypatch.setattr(
        Tap, "write", lambda tap, data, **how: (writes.append(len(data)), write(tap, data, **how))
    )
    await asyncio.gather(*(broker.publish(message(b"%d" % number)) for number in range(100)))
    assert len(writes) == 1


def written_by(broker: AmqpBroker, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Keep each write to the socket from now on."""
    transport = broker._link.tap._transport  # type: ignore[union-attr]
    assert transport is not None
    written: list[bytes] = []

    class Spy:
        def write(self, data: bytes) -> None:
            written.append(data)
            transport.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(transport, name)

    monkeypatch.setattr(broker._link.tap, "_transport", Spy())  # type: ignore[union-attr]
    return written


async def test_what_is_settled_and_published_in_one_turn_leaves_in_one_write_settlements_first(
    peer: Peer, broker: AmqpBroker, monkeypatch: pytest.MonkeyPatch
):
    connection = await warm(peer, broker)
    peer.on_publish = confirm
    subscription, got = await consume(peer, broker)
    connection.deliver(connection.consuming, b"1", b"2", b"3")
    await until(lambda: len(got) == 3, "the deliveries")
    written = written_by(broker, monkeypatch)
    answers = Answers(broker)
    answers.publish("one")
    subscription.settle(ack=got[:1])
    subscription.settle(ack=got[1:2])
    answers.publish("two")
    await answers.all("one", "two")
    assert len(written) == 1
    ack, publish = b"\0\x3c\0\x50", b"\0\x3c\0\x28"  # class and method
    assert written[0].index(ack) < written[0].index(publish)
    await until(lambda: connection.settled == [("ack", b"1"), ("ack", b"2")], "the acks")
    subscription.settle(ack=got[2:])
    assert len(written) == 2, "nothing is kept back where no publish is to follow"


async def test_settlements_are_not_kept_back_for_publishes_that_cannot_leave(peer: Peer, broker: AmqpBroker):
    connection = await warm(peer, broker)
    subscription, got = await consume(peer, broker)
    connection.deliver(connection.consuming, b"1")
    await until(lambda: len(got) == 1, "the delivery")
    connection.say(0, commands.Connection.Blocked("low on memory"))
    tap = broker._link.tap  # type: ignore[union-attr]
    await until(lambda: tap.blocked, "the block")
    answers = Answers(broker)
    answers.publish("held back", timeout=60)
    subscription.settle(ack=got)
    await until(lambda: connection.settled == [("ack", b"1")], "the ack")
    connection.say(0, commands.Connection.Unblocked())
    peer.on_publish = confirm
    assert await answers.all("held back") == {"held back": None}


@pytest.mark.parametrize("by", ["the channel", "the connection"])
async def test_what_is_kept_back_is_written_before_aiormq_says_goodbye(
    peer: Peer, broker: AmqpBroker, monkeypatch: pytest.MonkeyPatch, by: str
):
    """On a channel that is closed it would be an offence, and nothing that is settled may be lost."""
    connection = await warm(peer, broker)
    subscription, got = await consume(peer, broker)
    connection.deliver(connection.consuming, b"1")
    await until(lambda: len(got) == 1, "the delivery")
    link = broker._link
    assert link is not None
    written = written_by(broker, monkeypatch)
    link.tap.hold()
    subscription.settle(ack=got)
    assert written == []
    if by == "the channel":
        await subscription._drop_channel()
    else:
        await link.close()
    assert connection.settled == [("ack", b"1")]


@pytest.mark.parametrize("size", [0, 1, 4087, 4088, 4089, 8176, 100_000])
async def test_no_frame_is_longer_than_agreed(size: int):
    peer = Peer(frame_max=4096)
    await peer.start()
    peer.on_publish = confirm
    body = bytes(number % 251 for number in range(size))
    async with connected(peer) as broker:
        await broker.publish(message(body))
        assert peer.last.publishes[0].body == body
        assert peer.last.longest <= 4096
    await peer.close()


async def test_headers_longer_than_a_frame_are_refused_and_harm_nobody(peer: Peer, broker: AmqpBroker):
    connection = await warm(peer, broker)
    answers = Answers(broker)
    answers.publish("long", message(headers={"n": "x" * 200_000}))
    answers.publish("fine")
    assert await answers.all("long") == {"long": "encode_failed"}
    connection.confirm((await published(connection, 1))[0])
    assert await answers.all("fine") == {"fine": None}
    assert len(peer.connections) == 1


async def test_a_peer_that_takes_nothing_makes_publishes_and_acks_wait_without_piling_up(
    peer: Peer, broker: AmqpBroker
):
    connection = await warm(peer, broker)
    subscription, got = await consume(peer, broker)
    connection.deliver(connection.consuming, *(b"%d" % number for number in range(1000)))
    await until(lambda: len(got) == 1000, "the deliveries")
    connection.stop_reading()
    answers = Answers(broker)
    names = [f"{number:03}" for number in range(200)]
    for name in names:
        answers.publish(name, message(name.encode() + b"x" * 100_000))
    tap = broker._link.tap  # type: ignore[union-attr]
    await until(lambda: not tap.writable, "the socket to be full")
    for delivery in reversed(got):
        subscription.settle(ack=[delivery])
    transport = tap._transport
    assert transport is not None
    assert transport.get_write_buffer_size() < 2_000_000
    peer.on_publish = confirm
    connection.go_on()
    assert await answers.all(*names) == dict.fromkeys(names)
    assert [one.body[:3].decode() for one in connection.publishes] == names
    await until(lambda: len(connection.settled) == 1000, "the acks")
    await subscription.close()


async def test_acks_that_waited_arrive_before_the_channel_is_closed(peer: Peer, broker: AmqpBroker):
    connection = await warm(peer, broker)
    subscription, got = await consume(peer, broker)
    connection.deliver(connection.consuming, b"1", b"2", b"3")
    await until(lambda: len(got) == 3, "the deliveries")
    tap = broker._link.tap  # type: ignore[union-attr]
    tap.paused(paused=True)
    subscription.settle(ack=got[1:], requeue=got[:1])
    closing = asyncio.create_task(subscription.close())
    await until(lambda: not connection.consuming, "the cancel, which aiormq writes")
    assert connection.settled == []
    tap.paused(paused=False)
    await closing
    assert sorted(connection.settled) == [("ack", b"2"), ("ack", b"3"), ("requeue", b"1")]


# Blocked


async def test_a_blocked_connection_holds_messages_back_and_says_so(peer: Peer, broker: AmqpBroker):
    connection = await warm(peer, broker)
    connection.say(0, commands.Connection.Blocked("low on memory"))
    tap = broker._link.tap  # type: ignore[union-attr]
    await until(lambda: tap.blocked, "the block")
    answers = Answers(broker)
    answers.publish("late", timeout=0.05)
    answers.publish("new", message(exchange="new"), timeout=0.05)
    answers.publish("patient")
    assert await answers.all("late", "new") == {"late": "timeout", "new": "timeout"}
    assert "blocks publishers" in answers.texts["late"]
    assert "blocks publishers" in answers.texts["new"]
    assert connection.publishes == []
    peer.on_publish = confirm
    connection.say(0, commands.Connection.Unblocked())
    assert await answers.all("patient") == {"patient": None}
    assert [one.body for one in connection.publishes] == [b"patient"], "what was given up is not sent"


async def test_an_answer_that_does_not_come_is_a_timeout_and_later_confirms_nobody_else(
    peer: Peer, broker: AmqpBroker
):
    connection = await warm(peer, broker)
    answers = Answers(broker)
    answers.publish("slow", timeout=0.05)
    assert await answers.all("slow") == {"slow": "timeout"}
    assert "no confirm in time" in answers.texts["slow"]
    # The exchange is looked at again, for it may be the reason.
    answers.publish("next")
    sent = await published(connection, 2)
    connection.confirm(sent[0])
    await broker.queue_info("anything")
    assert "next" not in answers.reasons
    connection.confirm(sent[1])
    assert await answers.all("next") == {"next": None}


# Losses


async def test_what_is_in_flight_when_the_connection_dies_is_told_and_what_is_not_sent_is_sent_later(
    peer: Peer, broker: AmqpBroker
):
    connection = await warm(peer, broker)
    answers = Answers(broker)
    lost = [str(number) for number in range(50)]
    for name in lost:
        answers.publish(name)
    sent = await published(connection, 50)
    connection.confirm(sent[9], multiple=True)
    await answers.all("9")
    peer.on_publish = confirm
    connection.abort()
    await answers.all(*lost)
    answers.publish("later")
    told = await answers.all(*lost, "later")
    assert told == {name: None if int(name) < 10 else "connection" for name in lost} | {"later": None}
    assert [one.body for one in peer.last.publishes] == [b"later"]
    assert len(peer.connections) == 2


async def test_a_defect_while_connecting_again_does_not_end_the_reconnecting(
    peer: Peer, broker: AmqpBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    await warm(peer, broker)
    peer.on_publish = confirm
    opened = AmqpBroker._open
    failures = [ValueError("a defect"), Exception()]  # the latter is what aiormq closes with

    async def open_link(self: AmqpBroker) -> None:
        if failures:
            raise failures.pop()
        await opened(self)

    monkeypatch.setattr(AmqpBroker, "_open", open_link)
    link = broker._link
    assert link is not None
    peer.last.abort()
    await link.lost.wait()
    await broker.publish(message(b"after"))
    assert [one.body for one in peer.last.publishes] == [b"after"]
    assert "a defect" in caplog.text
    assert broker.reconnects == 1


async def test_the_first_message_to_an_exchange_is_told_when_the_connection_dies_under_it(
    peer: Peer, broker: AmqpBroker
):
    answers = Answers(broker)
    for name in ("first", "second", "third"):
        answers.publish(name)
    connection = await peer.has(lambda one: len(one.publishes) == 1, "the first publish")
    peer.on_publish = confirm
    connection.abort()
    assert await answers.all("first", "second", "third") == {
        "first": "connection",
        "second": None,
        "third": None,
    }
    assert [one.body for one in peer.last.publishes] == [b"second", b"third"]


async def test_what_waits_for_the_proof_of_an_exchange_is_sent_once_and_in_order(
    peer: Peer, broker: AmqpBroker
):
    answers = Answers(broker)
    names = [f"{number:02}" for number in range(20)]
    for name in names:
        answers.publish(name)
    first = await peer.has(lambda one: one.publishes, "the first publish")
    peer.on_publish = confirm
    confirm(first, first.publishes[0])
    assert await answers.all(*names) == dict.fromkeys(names)
    await broker.publish(message(b"last"))
    assert [one.body.decode() for one in first.publishes] == [*names, "last"]


async def test_closing_waits_for_confirms_and_tells_all_that_have_none(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lunaq_runtime.brokers.amqp.broker.CLOSE_TIMEOUT", 0.2)
    async with connected(peer) as broker:
        connection = await warm(peer, broker)
        answers = Answers(broker)
        for name in ("confirmed", "never"):
            answers.publish(name)
        sent = await published(connection, 2)
        closing = asyncio.create_task(broker.close())
        await asyncio.sleep(0)
        connection.confirm(sent[0])
        await closing
        assert answers.reasons == {"confirmed": None, "never": "connection"}


async def test_a_channel_closed_over_one_message_fails_that_one_and_the_others_say_why(
    peer: Peer, broker: AmqpBroker
):
    connection = await warm(peer, broker)
    peer.on_publish = confirm
    await broker.publish(message(exchange="gone"))
    await broker.publish(message(exchange="gone"))
    peer.on_publish = None
    connection.publishes.clear()
    answers = Answers(broker)
    answers.publish("other")
    answers.publish("gone", message(exchange="gone"))
    sent = await published(connection, 2)
    connection.close_channel(sent[0].channel, 404, "NOT_FOUND - no exchange 'gone' in vhost '/'")
    assert await answers.all("other", "gone") == {"other": "connection", "gone": "queue_not_found"}
    assert "another message" in answers.texts["other"]
    peer.on_publish = confirm
    peer.missing.add("gone")
    answers.publish("again")
    answers.publish("still gone", message(exchange="gone"))
    assert await answers.all("again", "still gone") == {"again": None, "still gone": "queue_not_found"}
    assert len(peer.connections) == 1


async def test_nothing_is_written_to_a_channel_that_the_broker_closes_in_the_middle_of_publishing(
    peer: Peer, broker: AmqpBroker
):
    await warm(peer, broker)
    peer.on_publish = lambda connection, publish: (
        connection.close_channel(publish.channel, 406, "PRECONDITION_FAILED - no")
        if publish.body == b"bad"
        else connection.confirm(publish)
    )
    for round_ in range(5):
        answers = Answers(broker)
        names = [f"{round_}-{number}" for number in range(200)]
        for name in names:
            answers.publish(name, message(b"bad" if name.endswith("-7") else b"fine"))
            # One in every turn of the loop, so that some turn falls between aiormq's answer and its news.
            await asyncio.sleep(0)
        told = await answers.all(*names)
        assert told[f"{round_}-7"] == "invalid_arguments"
    assert len(peer.connections) == 1


# Consuming


async def consume(
    peer: Peer, broker: AmqpBroker, *, prefetch: int = 10, **options: Any
) -> tuple[AmqpSubscription, list[Delivery]]:
    got: list[Delivery] = []
    subscription = await broker.consume("q", prefetch=prefetch, on_deliveries=got.extend, **options)
    await peer.has(lambda one: one.consuming, "the consumer")
    return subscription, got


async def test_a_connection_that_dies_in_the_middle_of_a_message_delivers_only_whole_ones(
    peer: Peer, broker: AmqpBroker
):
    subscription, got = await consume(peer, broker)
    for cut in (1, 5, 20, 40):
        before = len(got)
        connection = peer.last
        connection.deliver(connection.consuming, b"whole", b"x" * 20, cut=cut)
        await until(lambda before=before: len(got) > before, "the whole message")  # type: ignore[misc]
        number = len(peer.connections) + 1
        connection.abort()
        await peer.has(lambda one: one.consuming, "the consumer on a new connection", number)
        await until(lambda: subscription.active, "the consumer to be active")
        subscription.settle(ack=got)  # of a dead connection: nothing is sent
    assert [one.body for one in got] == [b"whole"] * 4
    assert [one.generation for one in got] == [1, 2, 3, 4]
    peer.last.deliver(peer.last.consuming, b"next")
    await until(lambda: len(got) == 5, "a delivery")
    subscription.settle(ack=got)
    await until(lambda: peer.last.settled, "the ack")
    assert peer.last.settled == [("ack", b"next")]


async def test_a_channel_closed_under_a_batch_is_not_spoken_on_and_consumed_anew(
    peer: Peer, broker: AmqpBroker
):
    got: list[Delivery] = []
    settling: list[asyncio.Task[None]] = []

    async def one_in_every_turn(batch: list[Delivery]) -> None:
        for delivery in batch:
            subscription.settle(ack=[delivery])
            await asyncio.sleep(0)

    def arrived(batch: list[Delivery]) -> None:
        got.extend(batch)
        settling.append(asyncio.create_task(one_in_every_turn(batch)))

    subscription = await broker.consume("q", prefetch=0, on_deliveries=arrived)
    connection = peer.last
    first = connection.consuming
    text = "PRECONDITION_FAILED - unknown delivery tag"
    connection._closing.add(first)
    connection.raw(
        b"".join(connection.delivery(first, b"%d" % number) for number in range(300))
        + frame.marshal(commands.Channel.Close(406, text, 60, 80), first)
    )
    await until(lambda: len(got) == 300, "the deliveries")
    await asyncio.gather(*settling)
    assert not subscription.alive(got[0])
    await until(lambda: subscription.active and connection.consuming, "the consumer to come back")
    subscription.settle(ack=got)
    connection.deliver(connection.consuming, b"again")
    await until(lambda: connection.settled, "the ack")
    assert got[300].generation == 2
    assert connection.settled == [("ack", b"again")]
    assert len(peer.connections) == 1


async def test_bytes_that_are_no_frames_cost_a_connection_and_no_confirm(peer: Peer, broker: AmqpBroker):
    connection = await warm(peer, broker)
    subscription, got = await consume(peer, broker)
    answers = Answers(broker)
    for name in ("confirmed", "lost"):
        answers.publish(name)
    sent = await published(connection, 2)
    broken = connection.delivery(connection.consuming, b"broken")[:-1] + b"\x00"
    connection.raw(frame.marshal(commands.Basic.Ack(sent[0].tag), sent[0].channel) + broken)
    assert await answers.all("confirmed", "lost") == {"confirmed": None, "lost": "connection"}
    await peer.has(lambda one: one.consuming, "the consumer on a new connection", 2)
    await until(lambda: subscription.active, "the consumer to be active")
    assert got == []


async def test_a_defect_above_stops_neither_deliveries_nor_confirms(peer: Peer, broker: AmqpBroker):
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context))
    connection = await warm(peer, broker)
    seen: list[bytes] = []

    def defect(batch: list[Delivery]) -> None:
        seen.extend(one.body for one in batch)
        raise ValueError("a defect")

    await broker.consume("q", prefetch=10, on_deliveries=defect)
    for body in (b"1", b"2"):
        connection.deliver(connection.consuming, body)
        await until(lambda body=body: seen[-1:] == [body], "the delivery")  # type: ignore[misc]
    peer.on_publish = confirm
    broker.publish_soon(message(), lambda _error: 1 / 0)
    await broker.publish(message())
    assert [type(context["exception"]) for context in failures] == [ValueError, ValueError, ZeroDivisionError]
    assert len(peer.connections) == 1


async def test_settling_at_once_before_the_consumer_is_confirmed_is_not_lost(peer: Peer, broker: AmqpBroker):
    subscriptions: list[AmqpSubscription] = []
    early: list[Delivery] = []

    def settle(batch: list[Delivery]) -> None:
        early.extend(batch)

    subscriptions.append(await broker.consume("q", prefetch=10, on_deliveries=settle))
    connection = peer.last
    connection.deliver(connection.consuming, b"1")
    await until(lambda: early, "the delivery")
    subscriptions[0].settle(ack=early)
    await until(lambda: connection.settled == [("ack", b"1")], "the ack")


def tap_of(broker: AmqpBroker) -> Tap:
    assert broker._link is not None
    return broker._link.tap


def least(broker: AmqpBroker) -> int:
    """Tell for how many bytes the kernel wakes us."""
    transport = tap_of(broker)._transport
    assert transport is not None
    size: int = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)
    return size


async def test_a_busy_connection_is_read_in_larger_pieces_until_an_answer_is_waited_for(
    peer: Peer, broker: AmqpBroker, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tap_module, "REST", 60.0)
    await warm(peer, broker)
    peer.on_publish = confirm
    subscription, got = await consume(peer, broker, prefetch=WIDE)
    peer.last.deliver(peer.last.consuming, b"1")
    await until(lambda: len(got) == 1, "one delivery")
    assert least(broker) == 1
    peer.last.deliver(peer.last.consuming, *[b"x"] * BUSY)
    await until(lambda: len(got) == 1 + BUSY, "several deliveries")
    assert least(broker) == PIECE
    subscription.settle(ack=got)
    await until(lambda: len(peer.last.settled) == 1 + BUSY, "the acks")
    assert least(broker) == PIECE
    async with asyncio.timeout(20):
        await broker.publish(message(b"out"))
    assert least(broker) == 1


@pytest.mark.parametrize("by", ["us", "the broker"])
async def test_no_socket_is_left_open_once_a_connection_is_gone(peer: Peer, broker: AmqpBroker, by: str):
    """The tap has a socket of its own to the same connection: the broker would not see the end of it."""
    tap, link = tap_of(broker), broker._link
    own = tap._socket
    assert own is not None
    assert link is not None
    if by == "us":
        await broker.close()
    else:
        peer.last.abort()
    await link.lost.wait()
    await until(lambda: own.fileno() == -1, "the socket's end")


async def test_a_connection_whose_rest_is_always_ended_by_publishes_does_not_rest(
    peer: Peer, broker: AmqpBroker, monkeypatch: pytest.MonkeyPatch
):
    """Going to rest and ending it are two calls of the kernel and a timer, for nothing."""
    monkeypatch.setattr(tap_module, "REST", 60.0)
    await warm(peer, broker)
    peer.on_publish = confirm
    _, got = await consume(peer, broker, prefetch=0)

    async def busy_chunk() -> None:
        number = len(got) + BUSY
        peer.last.deliver(peer.last.consuming, *[b"x"] * BUSY)
        await until(lambda: len(got) == number, "the deliveries")

    await busy_chunk()
    assert least(broker) == MOST_PIECE
    await broker.publish(message(b"out"))
    for _ in range(tap_module.RESTLESS):
        await busy_chunk()
        assert least(broker) == 1
    await busy_chunk()
    assert least(broker) == MOST_PIECE, "it tries again now and then"
    await broker.publish(message(b"out"))  # or closing would wait for as long


@pytest.mark.parametrize(
    ("prefetch", "body", "most"),
    [(150, 500, 0), (WIDE, 1, PIECE), (1000, 10_000, MOST_PIECE), (0, 1000, MOST_PIECE)],
    ids=[
        "a third of what is on its way",
        "no less than a piece",
        "no more than the most",
        "no bound on that",
    ],
)
async def test_a_piece_is_in_proportion_to_what_may_be_on_its_way(
    peer: Peer, broker: AmqpBroker, monkeypatch: pytest.MonkeyPatch, prefetch: int, body: int, most: int
):
    monkeypatch.setattr(tap_module, "REST", 60.0)
    _, got = await consume(peer, broker, prefetch=prefetch)
    peer.last.deliver(peer.last.consuming, *[b"x" * body] * BUSY)
    await until(lambda: len(got) == BUSY, "several deliveries")
    if most:
        assert least(broker) == most
    else:
        assert prefetch // 3 * body < least(broker) < prefetch // 3 * (body + 200)
    broker._link.tap._read_on()  # type: ignore[union-attr] # or closing would wait for as long


async def test_what_is_less_than_a_piece_is_read_after_a_moment(peer: Peer, broker: AmqpBroker):
    _, got = await consume(peer, broker, prefetch=0)
    peer.last.deliver(peer.last.consuming, *[b"x"] * BUSY)
    await until(lambda: len(got) == BUSY, "several deliveries")
    peer.last.deliver(peer.last.consuming, b"y")
    await until(lambda: len(got) == 1 + BUSY, "the small one behind them")


async def test_a_consumer_of_few_messages_at_a_time_is_never_made_to_wait(
    peer: Peer, broker: AmqpBroker, monkeypatch: pytest.MonkeyPatch
):
    """The broker would, too: it sends no more before they are settled."""
    monkeypatch.setattr(tap_module, "REST", 60.0)
    _, got = await consume(peer, broker, prefetch=WIDE - 1)
    peer.last.deliver(peer.last.consuming, *[b"x"] * (WIDE - 1))
    await until(lambda: len(got) == WIDE - 1, "the deliveries")
    assert least(broker) == 1


async def test_traffic_is_shown_to_aiormq_as_a_sign_of_life(monkeypatch: pytest.MonkeyPatch):
    """It gives a connection up that it hears nothing on, and it hears nothing of what is taken."""
    now = 100.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)

    class Nobody:
        def on_records(self, records: list[Any]) -> None:
            """Take them."""

        def on_closed(self) -> None:
            """Go."""

    tap = Tap()
    heartbeat = frame.marshal(frame.heartbeat.Heartbeat(), 0)
    part = frame.marshal(commands.Basic.Deliver("c", 1, False, "x", "k"), 1)[:5]
    tap.consume(1, Nobody())
    assert tap.received(part) == heartbeat
    assert tap.received(b"") == b""
    now += 1.5
    assert tap.received(b"") == heartbeat


async def test_the_tap_works_behind_tls(tmp_path: Path):
    pki = Pki(tmp_path)
    pki.server("broker", ["localhost"], ["127.0.0.1"])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pki.path("broker.crt"), pki.path("broker.key"))
    peer = Peer(server)
    await peer.start()
    peer.on_publish = confirm
    async with connected(peer, tls=ssl.create_default_context(cafile=pki.path("ca.crt"))) as broker:
        subscription, got = await consume(peer, broker)
        body = bytes(range(256)) * 2000
        await broker.publish(message(body))
        peer.last.deliver(peer.last.consuming, body, b"small")
        await until(lambda: len(got) == 2, "the deliveries")
        assert got[0].body == peer.last.publishes[0].body == body
        subscription.settle(ack=got)
        await until(lambda: len(peer.last.settled) == 2, "the acks")
    await peer.close()
    assert peer.offences == []
