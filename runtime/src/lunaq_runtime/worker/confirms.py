"""The event loop's side of runs that went ahead of their last publish (`ahead`): it publishes, and waits.

`desk` makes one per consumer. A delivery that waits here has its handler behind it; the confirm is its end.
"""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from lunaq_runtime.lua.invocation import timeout_error
from lunaq_runtime.lua.requests import PUBLISHED, SUCCEEDED, Finished
from lunaq_runtime.worker.context import carry_on_trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from lunaq_runtime.lua.errors import HandlerError
    from lunaq_runtime.message import Delivery
    from lunaq_runtime.worker.lane import Lane
    from lunaq_runtime.worker.requests import Reply, Requests
    from lunaq_runtime.worker.session import Session

MOST_BYTES = 4 * 1024 * 1024
"""Bytes of a consumer's publishes on their way beyond which runs wait: slots fill, and no more start."""


class Confirms:
    """Deliveries of one consumer whose runs went ahead, until their publishes are answered.

    `end` takes what a run has come to, where that is no plain success. `look_at` is asked to have `expire`
    called at a time of the loop's clock; a message's time is `timeout` seconds from the start of its run.
    """

    def __init__(
        self,
        lane: Lane,
        requests: Requests,
        timeout: float,
        end: Callable[[Session, Delivery, Finished], None],
        look_at: Callable[[float], None],
    ) -> None:
        self._lane = lane
        self._requests = requests
        self._timeout = timeout
        self._end = end
        self._look_at = look_at
        self._waiting: dict[Delivery, tuple[Session, float, Finished]] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._lane.ahead.published)

    def publish(self, interruption: HandlerError | None) -> bool:
        """Publish what runs went ahead of, or end them if all are interrupted; false if there was nothing."""
        ahead, requests, waiting = self._lane.ahead, self._requests, self._waiting
        count = len(ahead.published)
        for _ in range(count):
            session, delivery, started, publish = ahead.published.popleft()
            if interruption:
                self._over(session, delivery, started, Finished(interruption))
                continue
            self._look_at(started + self._timeout)
            waiting[delivery] = session, started, publish.ended or SUCCEEDED
            requests.publish_soon(carry_on_trace(publish, delivery), partial(self._answered, delivery))
        ahead.crowded = requests.on_their_way > MOST_BYTES
        return count > 0

    def interrupt(self, error: HandlerError) -> None:
        """Wait for nothing more that is published already: the messages are handed back."""
        while self._waiting:
            delivery, (session, started, _) = self._waiting.popitem()
            self._over(session, delivery, started, Finished(error))

    def expire(self, now: float) -> float:
        """End those whose time is up; returns when the next one's is, in the loop's time."""
        following = float("inf")
        for delivery, (session, started, _) in list(self._waiting.items()):
            deadline = started + self._timeout
            if deadline <= now:
                del self._waiting[delivery]
                self._over(session, delivery, started, Finished(timeout_error(self._timeout)))
            else:
                following = min(following, deadline)
        return following

    def _answered(self, delivery: Delivery, reply: Reply) -> None:
        """Take the reply to a publish: mostly the confirm; where it is refused, the run is void."""
        waited = self._waiting.pop(delivery, None)
        if waited is None:
            return  # its time was up, or it was interrupted
        session, started, ended = waited
        if reply is not PUBLISHED:
            self._lane.begin_anew(session, delivery)
            return
        self._lane.ahead.was_confirmed()
        if ended is SUCCEEDED:
            self._lane.confirmed(session, delivery, started)
        else:
            self._over(session, delivery, started, ended)

    def _over(self, session: Session, delivery: Delivery, started: float, finished: Finished) -> None:
        self._lane.spent.append((1, monotonic() - started))
        self._end(session, delivery, finished)
        self._lane.go_on()
