"""The brokers that one conformance suite runs on, started side by side; called by the fixture `fleet`.

A broker named by the environment (LUNAQ_TEST_AMQP_URI_RABBITMQ43 and so on) is used instead of one of ours.
"""

import re
from collections.abc import Callable, Iterable, Mapping

from harness.broker import Broker
from harness.qpid import OwnQpid, Qpid
from harness.rabbitmq import SUITES, RabbitMQ, broker_of_environment

_MAKERS: Mapping[str, Callable[[], RabbitMQ | OwnQpid]] = {
    "rabbitmq40": lambda: RabbitMQ(suite=SUITES["4.0"]),
    "rabbitmq43": lambda: RabbitMQ(suite=SUITES["4.3"]),
    "qpid": OwnQpid,
}


class Fleet:
    """Brokers by name; a name's first use waits until that broker serves.

    Args:
        names: those that start at the first use of any, for they start best while others are waited for.
    """

    NAMES = tuple(_MAKERS)

    def __init__(self, names: Iterable[str]) -> None:
        self._names = set(names)
        self._brokers: dict[str, Broker] = {}
        self._launched: list[RabbitMQ | OwnQpid] = []

    @staticmethod
    def named(test: str) -> list[str]:
        """Give the brokers that a test's id names, as in `test_x[qpid]`."""
        return [name for name in re.findall(r"\w+", test.partition("[")[2]) if name in _MAKERS]

    def __getitem__(self, name: str) -> Broker:
        """Give a broker that serves."""
        for one in sorted({*self._names, name} - self._brokers.keys()):
            self._launch(one)
        broker = self._brokers[name]
        if isinstance(broker, RabbitMQ | OwnQpid):
            broker.await_ready()
        return broker

    def qpid(self) -> Qpid:
        """Give the Broker-J."""
        broker = self["qpid"]
        assert isinstance(broker, Qpid)
        return broker

    def stop(self) -> None:
        """End those that were started here."""
        for broker in self._launched:
            broker.stop()

    def _launch(self, name: str) -> None:
        broker = broker_of_environment(f"_{name.upper()}")
        if broker is None:
            broker = _MAKERS[name]()
            self._launched.append(broker)
            broker.launch()
        self._brokers[name] = broker
