"""How many publishes of a route may be unconfirmed, what becomes of those that are held meanwhile, and how an
answer to many is taken in portions.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from pamqp import commands

from harness.amqp_publishing import Answers, confirm, message, published, until, warm
from lunaq_runtime.brokers.amqp import outlet
from lunaq_runtime.brokers.amqp.tap import Tap

if TYPE_CHECKING:
    from harness.amqp_peer import Connection, Peer
    from lunaq_runtime.brokers.amqp import AmqpBroker

MOST = 3


@pytest.fixture(autouse=True)
def most(broker: AmqpBroker) -> None:
    broker._publisher.most_unconfirmed = MOST


def bodies(connection: Connection) -> list[bytes]:
    return [publish.body for publish in connection.publishes]


async def full(peer: Peer, broker: AmqpBroker, answers: Answers) -> Connection:
    """Have as many publishes unconfirmed as may be: "0", "1" and so on."""
    connection = await warm(peer, broker)
    for number in range(MOST):
        answers.publish(str(number))
    await published(connection, MOST)
    return connection


async def full_and_held(peer: Peer, broker: AmqpBroker, answers: Answers) -> tuple[Connection, list[str]]:
    """Have twice as many held besides, and whatever comes from now on confirmed."""
    connection = await full(peer, broker, answers)
    names = [f"held {number}" for number in range(2 * MOST)]
    for name in names:
        answers.publish(name)
    peer.on_publish = confirm
    return connection, names


def confirm_all(peer: Peer, connection: Connection) -> None:
    """Confirm each publish that is there, and whatever comes from now on."""
    peer.on_publish = confirm
    for publish in list(connection.publishes):
        connection.confirm(publish)


async def seen(broker: AmqpBroker) -> None:
    """Ask the peer something, after which it has what was written before."""
    await broker.queue_info("anything")


@pytest.mark.parametrize(
    ("prefetches", "most"),
    [([1], 250), ([600], 300), ([600, 10], 300), ([10, 600], 300), ([65_535], 1000), ([0], 1000)],
)
async def test_half_of_what_the_widest_consumer_has_may_be_unconfirmed(
    broker: AmqpBroker, prefetches: list[int], most: int
):
    for prefetch in prefetches:
        await broker.consume("q", prefetch=prefetch, on_deliveries=lambda _batch: None)
    assert broker._publisher.most_unconfirmed == most


async def test_what_goes_beyond_is_held_and_each_confirm_lets_one_go_in_order(peer: Peer, broker: AmqpBroker):
    answers = Answers(broker)
    connection = await full(peer, broker, answers)
    names = [str(number) for number in range(8)]
    for name in names[MOST:]:
        answers.publish(name)
    await seen(broker)
    assert len(connection.publishes) == MOST
    connection.confirm(connection.publishes[0])
    await published(connection, MOST + 1)
    await seen(broker)
    assert len(connection.publishes) == MOST + 1
    peer.on_publish = confirm
    for publish in connection.publishes[1:]:
        connection.confirm(publish)
    assert await answers.all(*names) == dict.fromkeys(names)
    assert bodies(connection) == [name.encode() for name in names]


async def test_nothing_overtakes_what_is_held(peer: Peer, broker: AmqpBroker):
    answers = Answers(broker)
    connection = await warm(peer, broker)
    broker.publish_soon(message(b"0"), lambda _error: answers.publish("new"))
    await published(connection, 1)
    names = [str(number) for number in range(1, 2 * MOST)]
    for name in names[: MOST - 1]:
        answers.publish(name)
    await published(connection, MOST)
    for name in names[MOST - 1 :]:
        answers.publish(name)
    confirm_all(peer, connection)
    await answers.all(*names, "new")
    assert bodies(connection) == [name.encode() for name in ("0", *names, "new")]


async def test_more_than_may_be_unconfirmed_are_confirmed_before_one_is_let_go(
    peer: Peer, broker: AmqpBroker
):
    answers = Answers(broker)
    connection = await warm(peer, broker)
    names = [str(number) for number in range(2 * MOST)]
    for name in names:
        answers.publish(name)  # all in one turn: it is counted once they are written
    await published(connection, 2 * MOST)
    answers.publish("held")
    for publish in connection.publishes[:MOST]:
        connection.confirm(publish)
    await answers.all(*names[:MOST])
    await seen(broker)
    assert b"held" not in bodies(connection)
    connection.confirm(connection.publishes[MOST])
    await published(connection, 2 * MOST + 1)
    connection.confirm(connection.publishes[-1], multiple=True)
    assert await answers.all("held") == {"held": None}


async def test_one_refusal_of_many_lets_as_many_go(peer: Peer, broker: AmqpBroker):
    answers = Answers(broker)
    connection = await full(peer, broker, answers)
    names = [str(number) for number in range(2 * MOST)]
    for name in names[MOST:]:
        answers.publish(name)
    connection.confirm(connection.publishes[MOST - 1], multiple=True, nack=True)
    await published(connection, 2 * MOST)
    connection.confirm(connection.publishes[-1], multiple=True)
    assert await answers.all(*names) == {name: "nacked" if int(name) < MOST else None for name in names}


async def test_a_route_that_confirms_nothing_holds_up_no_other(peer: Peer, broker: AmqpBroker):
    answers = Answers(broker)
    connection = await full(peer, broker, answers)
    answers.publish("held")
    answers.publish("other key", message(b"other key", key="other"))
    await published(connection, MOST + 1)
    connection.confirm(connection.publishes[-1])
    assert await answers.all("other key") == {"other key": None}
    await seen(broker)
    assert b"held" not in bodies(connection)
    peer.on_publish = confirm
    connection.confirm(connection.publishes[MOST - 1], multiple=True)
    assert await answers.all("held") == {"held": None}


async def test_what_is_held_too_long_is_a_timeout_and_never_sent(peer: Peer, broker: AmqpBroker):
    answers = Answers(broker)
    connection = await full(peer, broker, answers)
    answers.publish("late", timeout=0.05)
    answers.publish("patient")
    assert await answers.all("late") == {"late": "timeout"}
    assert "no confirm in time" in answers.texts["late"]
    assert len(list(broker._publisher._routes.held())) == 1, "what was given up is forgotten"
    confirm_all(peer, connection)
    assert await answers.all("patient") == {"patient": None}
    assert b"late" not in bodies(connection)


async def test_an_answer_that_nobody_waits_for_any_more_lets_one_go(peer: Peer, broker: AmqpBroker):
    answers = Answers(broker)
    connection = await warm(peer, broker)
    late = [str(number) for number in range(MOST)]
    for name in late:
        answers.publish(name, timeout=0.05)
    await published(connection, MOST)
    answers.publish("patient")
    assert await answers.all(*late) == dict.fromkeys(late, "timeout")
    await seen(broker)
    assert b"patient" not in bodies(connection)
    peer.on_publish = confirm
    connection.confirm(connection.publishes[MOST - 1], multiple=True)
    assert await answers.all("patient") == {"patient": None}


async def test_what_is_held_when_the_connection_is_lost_is_sent_over_the_next(peer: Peer, broker: AmqpBroker):
    answers = Answers(broker)
    connection, names = await full_and_held(peer, broker, answers)
    connection.abort()
    assert await answers.all(*names) == dict.fromkeys(names)
    await until(lambda: len(peer.connections) == 2, "the next connection")
    assert sorted(bodies(peer.last)) == sorted(name.encode() for name in names)


async def test_closing_waits_for_what_is_held(peer: Peer, broker: AmqpBroker):
    answers = Answers(broker)
    connection = await full(peer, broker, answers)
    answers.publish("held")
    confirm_all(peer, connection)
    await broker.close()
    assert answers.reasons == dict.fromkeys(["0", "1", "2", "held"])


async def test_what_is_held_while_nothing_is_answered_is_told_at_the_end(
    peer: Peer, broker: AmqpBroker, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lunaq_runtime.brokers.amqp.broker.CLOSE_TIMEOUT", 0.05)
    answers = Answers(broker)
    await full(peer, broker, answers)
    answers.publish("held")
    await broker.close()
    assert answers.reasons == dict.fromkeys(["0", "1", "2", "held"], "connection")


async def test_a_channel_closed_over_one_message_lets_what_is_held_go_to_the_next(
    peer: Peer, broker: AmqpBroker
):
    answers = Answers(broker)
    connection, names = await full_and_held(peer, broker, answers)
    connection.close_channel(connection.publishes[0].channel, 404, "NOT_FOUND - no exchange 'y'")
    assert await answers.all(*names) == dict.fromkeys(names)


@pytest.fixture
async def eight(
    peer: Peer, broker: AmqpBroker, monkeypatch: pytest.MonkeyPatch
) -> tuple[Connection, Answers, dict[str, None]]:
    """Publish "0" to "7", whose answers are taken by three; none of them is held."""
    monkeypatch.setattr(outlet, "PORTION", 3)
    broker._publisher.most_unconfirmed = 100
    connection = await warm(peer, broker)
    answers = Answers(broker)
    names = [str(number) for number in range(8)]
    for name in names:
        answers.publish(name)
    await published(connection, len(names))
    return connection, answers, dict.fromkeys(names)


async def test_what_follows_from_the_first_answers_leaves_before_the_last_is_looked_at(
    eight: Any, monkeypatch: pytest.MonkeyPatch
):
    connection, answers, confirmed = eight
    told_at: list[int] = []
    write = Tap.write

    def noted(tap: Tap, frames: bytes, *, answer: bool = True) -> None:
        told_at.append(len(answers.reasons))
        write(tap, frames, answer=answer)

    answers.on_told = lambda name: answers.publish(f"after {name}") if name in confirmed else None
    monkeypatch.setattr(Tap, "write", noted)
    connection.confirm(connection.publishes[-1], multiple=True)
    await published(connection, 16)
    assert told_at == [2, 5, 8], "`warm` had the first number"
    connection.confirm(connection.publishes[-1], multiple=True)
    await answers.all(*(f"after {name}" for name in confirmed))


async def test_an_answer_to_all_there_are_is_none_to_what_is_published_before_its_turn(
    broker: AmqpBroker, eight: Any
):
    connection, answers, confirmed = eight
    answers.on_told = lambda name: answers.publish("new") if name == "0" else None
    connection.say(connection.publishes[0].channel, commands.Basic.Ack(0, multiple=True))
    assert await answers.all(*confirmed) == confirmed
    await published(connection, 9)
    await seen(broker)
    assert "new" not in answers.reasons
    connection.confirm(connection.publishes[-1])
    assert await answers.all("new") == {"new": None}


async def test_what_was_confirmed_is_not_told_as_lost_because_its_turn_had_not_come(
    broker: AmqpBroker, eight: Any
):
    connection, answers, confirmed = eight
    lose = broker._publisher.link_lost
    answers.on_told = lambda name: asyncio.get_running_loop().call_soon(lose) if name == "0" else None
    connection.give_back(connection.publishes[5])
    connection.confirm(connection.publishes[6], multiple=True)
    assert await answers.all(*confirmed) == confirmed | {"5": "unroutable", "7": "connection"}
