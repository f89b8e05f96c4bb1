"""What the Python peers share: their command line, and the handler that all of them run."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any


def options() -> argparse.Namespace:
    """Read the command line; the URI is in BENCH_URI, so that no password is in the process list."""
    parser = argparse.ArgumentParser(description="One peer of `make bench`.")
    parser.add_argument("--queue", required=True, help="the queue to consume")
    parser.add_argument("--out", default="", help="the exchange to relay to; without it, drain")
    parser.add_argument("--prefetch", type=int, default=200)
    parser.add_argument("--acks", type=int, default=1, help="messages that a (multiple) ack covers")
    parser.add_argument("--concurrency", type=int, default=100, help="messages relayed at a time")
    return parser.parse_args()


def uri() -> str:
    """Tell where the broker is."""
    return os.environ["BENCH_URI"]


def handle(body: bytes) -> None:
    """Decode a message and read two fields of it, as the Lua handler does."""
    read(json.loads(body))


def read(order: dict[str, Any]) -> None:
    """Read two fields."""
    if order["id"] is None or order["amount"] is None:
        raise ValueError("the message lacks id or amount")
