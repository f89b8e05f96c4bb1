"""dramatiq: its own queue and message format. `python dramatiq_peer.py` declares; its command line works.

python -m dramatiq dramatiq_peer --processes 1 --threads 8
"""

from __future__ import annotations

import os
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

import common

broker = RabbitmqBroker(url=common.uri(), confirm_delivery=True)
dramatiq.set_broker(broker)
OUT = os.environ.get("BENCH_OUT", "")


@dramatiq.actor(queue_name="bench-dramatiq")
def order(body: dict[str, Any]) -> None:
    """Read two fields."""
    common.read(body)


if __name__ == "__main__":
    broker.declare_queue("bench-dramatiq", ensure=True)
