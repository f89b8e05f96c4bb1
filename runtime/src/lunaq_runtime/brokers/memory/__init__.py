"""A broker in this process: the local mode's default, and the one handler tests run against.

It keeps to RabbitMQ's semantics where Lunaq relies on them; `tests/broker` holds one conformance suite
for both. Nothing survives the process.
"""

from lunaq_runtime.brokers.memory.broker import MemoryBroker
from lunaq_runtime.brokers.memory.server import MemoryServer

__all__ = ["MemoryBroker", "MemoryServer"]
