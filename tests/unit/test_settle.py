"""The order and the safety of settling, with a broker and a subscription that only take notes."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import lunaq_runtime
from lunaq_runtime import settle
from lunaq_runtime.brokers.base import BrokerError
from lunaq_runtime.message import Delivery, Outgoing, Properties
from lunaq_runtime.retry import Ack, Republish, Requeue
from lunaq_runtime.settle import Settler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lunaq_runtime.brokers.base import Broker, Subscription

RETRY = Republish(Outgoing("q.retry", "20", b"{}", Properties()), "retry")


class Notes:
    """A broker and its subscription in one."""

    def __init__(self) -> None:
        self.settled: list[tuple[list[int], list[int]]] = []
        self.published = 0
        self.dead: set[Delivery] = set()
        self.errors: list[BrokerError | Exception] = []
        self.events: list[str] = []
        self.closed = False
        self.blocked = asyncio.Event()
        self.blocked.set()
        self.refused = asyncio.Event()

    def alive(self, delivery: Delivery) -> bool:
        return delivery not in self.dead

    def settle(self, *, ack: Sequence[Delivery] = (), requeue: Sequence[Delivery] = ()) -> None:
        self.settled.append(([one.tag for one in ack], [one.tag for one in requeue]))

    async def publish(self, _message: Outgoing, **_options: Any) -> None:
        await self.blocked.wait()
        if self.errors:
            self.refused.set()
            raise self.errors.pop(0)
        self.published += 1

    async def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "FIRST_BACKOFF", 0.001)


def make(*tags: int, **options: Any) -> tuple[Notes, Settler, list[Delivery]]:
    notes = Notes()
    broker: Broker = notes  # type: ignore[assignment]
    settler = Settler(broker, notes.events.append, **options)
    subscription: Subscription = notes  # type: ignore[assignment]
    settler.attach(subscription)
    deliveries = [Delivery("q", tag, b"{}", Properties()) for tag in tags]
    settler.hold(deliveries)
    return notes, settler, deliveries


async def test_what_one_turn_of_the_loop_settles_goes_out_in_one_call():
    notes, settler, (one, two, three) = make(1, 2, 3)
    settler.submit(one, Ack())
    settler.submit(two, Requeue())
    settler.submit(three, Ack())
    await settler.settled()
    assert notes.settled == [([1, 3], [2])]


async def test_a_republish_is_acked_after_its_confirm_and_not_before():
    notes, settler, (one,) = make(1)
    notes.blocked.clear()
    settler.submit(one, RETRY)
    await asyncio.sleep(0)
    assert (settler.held, notes.settled) == (1, [])
    notes.blocked.set()
    await settler.settled()
    assert (notes.published, notes.settled) == (1, [([1], [])])


@pytest.mark.parametrize(
    "error",
    [BrokerError(reason, reason) for reason in ("nacked", "unroutable", "timeout", "connection")]
    + [ValueError("a defect")],
    ids=str,
)
async def test_a_refused_republish_is_tried_again_and_acked_once(error: Exception):
    notes, settler, (one,) = make(1)
    notes.errors = [error, error]
    settler.submit(one, RETRY)
    await settler.settled()
    assert notes.events == ["publish_failed", "publish_failed", "retry"]
    assert notes.settled == [([1], [])]


async def test_a_delivery_of_a_lost_connection_is_neither_published_nor_settled():
    notes, settler, (one, two) = make(1, 2)
    notes.dead = {one, two}
    settler.submit(one, RETRY)
    settler.submit(two, Ack())
    await settler.settled()
    assert (notes.published, notes.settled) == (0, [])
    assert notes.events == ["lost", "lost"]


async def test_a_connection_lost_between_two_tries_ends_them():
    notes, settler, (one,) = make(1)
    notes.errors = [BrokerError("connection", "gone")] * 1000
    settler.submit(one, RETRY)
    await notes.refused.wait()
    notes.dead = {one}
    await settler.settled()
    assert (notes.published, notes.settled) == (0, [])


async def test_whoever_waits_for_a_settlement_hears_of_the_lost_connection():
    notes, settler, (one,) = make(1)
    notes.dead = {one}
    with pytest.raises(BrokerError, match="delivers the message again"):
        settler.carry_out_now(one, Ack())
    with pytest.raises(BrokerError, match="delivers the message again"):
        await settler.carry_out(one, RETRY)


async def test_a_second_settlement_of_a_delivery_sends_nothing():
    notes, settler, (one,) = make(1)
    settler.submit(one, Ack())
    settler.submit(one, Ack())
    settler.submit(one, RETRY)
    await settler.settled()
    await settler.close()
    assert (notes.published, notes.settled) == (0, [([1], [])])


async def test_closing_gives_up_what_is_not_taken_and_leaves_it_unacknowledged():
    notes, settler, (one,) = make(1)
    notes.errors = [BrokerError("nacked", "full")] * 1000
    settler.submit(one, RETRY)
    await notes.refused.wait()
    await settler.close()
    assert (notes.settled, notes.closed) == ([], True)


async def test_a_pause_before_a_requeue_ends_when_the_process_is_about_to_leave():
    notes, settler, (one,) = make(1)
    settler.submit(one, Requeue(pause=3600.0))
    await asyncio.sleep(0)
    assert settler.held == 1
    settler.hurry()
    await settler.settled()
    assert notes.settled == [([], [1])]


async def test_settlements_wait_for_a_subscription_that_delivers_before_it_is_known():
    notes = Notes()
    settler = Settler(notes, notes.events.append)  # type: ignore[arg-type]
    early = Delivery("q", 1, b"{}", Properties())
    settler.hold([early])
    settler.submit(early, Ack())
    await asyncio.sleep(0)
    assert settler.held == 1
    settler.attach(notes)  # type: ignore[arg-type]
    await settler.settled()
    assert notes.settled == [([1], [])]


async def test_without_acks_nothing_is_ever_sent():
    notes, settler, deliveries = make(1, 2, 3, no_ack=True)
    for delivery, plan in zip(deliveries, (Ack(), RETRY, Requeue()), strict=True):
        settler.submit(delivery, plan)
    await settler.settled()
    assert (notes.published, notes.settled) == (0, [])


def test_only_this_module_settles():
    root = Path(lunaq_runtime.__file__).parent
    callers = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if "brokers" not in path.relative_to(root).parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in ("settle", "basic_ack", "basic_nack", "basic_reject")
    }
    assert callers == {"settle.py"}
