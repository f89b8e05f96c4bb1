"""How long to wait before trying again: exponential, capped, with full jitter.

Full jitter, so that the pods of a whole cluster do not come back to a restarted broker at once (trap T9).
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MOST_DOUBLINGS = 32


def full_jitter(
    first: float, most: float, pick: Callable[[float, float], float] = random.uniform
) -> Iterator[float]:
    """Yield waits in seconds without end, `pick`ed between 0 and `first`, doubled each time up to `most`."""
    attempt = 0
    while True:
        yield pick(0.0, min(most, first * 2**attempt))
        attempt = min(attempt + 1, _MOST_DOUBLINGS)
