"""Waits for a condition with a deadline: the one place in the tests that sleeps.

Called by the harness, and by tests that wait for something to become true.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
_INTERVAL = 0.05


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
        condition: called every 50 ms.
        what: completes "waited N s for ...".
        timeout: in seconds.
        retry_on: exceptions that mean "not yet".

    Raises:
        NotInTimeError: with the last value or exception.
    """
    deadline = time.monotonic() + timeout
    last: object = None
    while True:
        try:
            if value := condition():
                return value
            last = value
        except retry_on as error:
            last = error
        if time.monotonic() > deadline:
            raise NotInTimeError(f"waited {timeout:g} s for {what}; last: {last!r}")
        time.sleep(_INTERVAL)


async def eventually(
    condition: Callable[[], Awaitable[T]],
    what: str,
    timeout: float = 30,  # noqa: ASYNC109 - the deadline belongs to the text of the failure
    retry_on: tuple[type[Exception], ...] = (),
) -> T:
    """Do what wait_for does, in an event loop and with an async condition."""
    deadline = time.monotonic() + timeout
    last: object = None
    while True:
        try:
            if value := await condition():
                return value
            last = value
        except retry_on as error:
            last = error
        if time.monotonic() > deadline:
            raise NotInTimeError(f"waited {timeout:g} s for {what}; last: {last!r}")
        await asyncio.sleep(_INTERVAL)
