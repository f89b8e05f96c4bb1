"""Waits for a condition with a deadline: the one place in the tests that sleeps.

Called by the harness, and by tests that wait for something to become true.
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
_PAUSES = (0.002, 0.004, 0.008, 0.016, 0.032, 0.05)
"""Seconds between looks, the last one repeated: most conditions are true at once or after a while."""


class NotInTimeError(AssertionError):
    """A condition did not come true before its deadline; the text says which, and what was seen last."""


def wait_for(
    condition: Callable[[], T],
    what: str,
    timeout: float = 30,
    retry_on: tuple[type[Exception], ...] = (),
) -> T:
    """Call `condition` until it is truthy, and give its value.

    Args:
        condition: called at once, then after pauses that grow to 50 ms.
        what: completes "waited N s for ...".
        timeout: in seconds.
        retry_on: exceptions that mean "not yet".

    Raises:
        NotInTimeError: with the last value or exception.
    """
    deadline = time.monotonic() + timeout
    last: object = None
    pauses = itertools.chain(_PAUSES, itertools.repeat(_PAUSES[-1]))
    while True:
        try:
            if value := condition():
                return value
            last = value
        except retry_on as error:
            last = error
        if time.monotonic() > deadline:
            raise NotInTimeError(f"waited {timeout:g} s for {what}; last: {last!r}")
        time.sleep(next(pauses))


async def eventually(
    condition: Callable[[], Awaitable[T]],
    what: str,
    timeout: float = 30,  # noqa: ASYNC109 - the deadline belongs to the text of the failure
    retry_on: tuple[type[Exception], ...] = (),
) -> T:
    """Do what wait_for does, in an event loop and with an async condition."""
    deadline = time.monotonic() + timeout
    last: object = None
    pauses = itertools.chain(_PAUSES, itertools.repeat(_PAUSES[-1]))
    while True:
        try:
            if value := await condition():
                return value
            last = value
        except retry_on as error:
            last = error
        if time.monotonic() > deadline:
            raise NotInTimeError(f"waited {timeout:g} s for {what}; last: {last!r}")
        await asyncio.sleep(next(pauses))
