"""The fixtures of all levels; loaded by tests/conftest.py. Each starts its service when first asked for.

A service that is missing is an error, never a skip: a level that ran nothing must not look passed.
"""

from collections.abc import Iterator

import pytest

from harness.apiserver import ApiServer
from harness.broker import Broker
from harness.broker_pod import BrokerPod
from harness.fleet import Fleet
from harness.images import images_of_environment
from harness.kubernetes import Cluster, external_kubeconfig
from harness.node import Node
from harness.pod_cluster import PodCluster
from harness.processes import release_ports
from harness.rabbitmq import RabbitMQ, broker_of_environment

_MARKERS = {
    "rabbitmq": "rabbitmq",
    "restartable_rabbitmq": "rabbitmq",
    "fleet": "rabbitmq",
    "apiserver": "apiserver",
    "node": "pods",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by the services it uses, so that `-m "not rabbitmq"` needs no hand-written markers."""
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if marker := _MARKERS.get(fixture):
                item.add_marker(marker)


def pytest_unconfigure() -> None:
    """Give the reserved ports back."""
    release_ports()


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[Broker]:
    """One broker for the whole run: use `vhost` on it, and `restartable_rabbitmq` to restart one."""
    if external := broker_of_environment():
        yield external
        return
    node = RabbitMQ()
    try:
        node.start()
        yield node
    finally:
        node.stop()


@pytest.fixture(scope="session")
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """The brokers of the conformance suite; those that selected tests name start side by side."""
    fleet = Fleet({name for item in request.session.items for name in Fleet.named(item.nodeid)})
    try:
        yield fleet
    finally:
        fleet.stop()


@pytest.fixture
def vhost(rabbitmq: Broker) -> Iterator[str]:
    """A virtual host of the test's own, deleted afterwards."""
    name = rabbitmq.new_vhost()
    yield name
    rabbitmq.delete_vhost(name)


@pytest.fixture(scope="module")
def restartable_rabbitmq() -> Iterator[RabbitMQ]:
    """A broker of the module's own, always started here, that tests may restart, crash or freeze."""
    node = RabbitMQ()
    try:
        node.start()
        yield node
    finally:
        node.stop()


@pytest.fixture(scope="session")
def apiserver() -> Iterator[Cluster]:
    """One API server for the whole run, our kinds installed; or the cluster of LUNAQ_TEST_KUBECONFIG."""
    external = external_kubeconfig()
    cluster = Cluster(external) if external else ApiServer()
    try:
        if isinstance(cluster, ApiServer):
            cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def crds(apiserver: Cluster) -> None:
    """The custom resource definitions of crds/, served by `apiserver`."""
    apiserver.install_crds()


@pytest.fixture
def namespace(apiserver: Cluster) -> Iterator[str]:
    """A namespace of the test's own in `apiserver`; its deletion is begun afterwards and not awaited."""
    name = apiserver.new_namespace()
    yield name
    apiserver.delete_namespace(name)


@pytest.fixture(scope="session")
def node() -> Iterator[PodCluster]:
    """One cluster that runs pods for the whole run; or the cluster of LUNAQ_TEST_KUBECONFIG."""
    external = external_kubeconfig()
    cluster = PodCluster(external, images_of_environment()) if external else Node()
    try:
        if isinstance(cluster, Node):
            cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def node_namespace(node: PodCluster) -> Iterator[str]:
    """A namespace of the test's own in `node`; its deletion is begun afterwards and not awaited."""
    name = node.new_namespace()
    yield name
    node.delete_namespace(name)


@pytest.fixture(scope="session")
def broker_pod(node: PodCluster) -> Iterator[BrokerPod]:
    """One RabbitMQ in a pod of `node` for the whole run; use a virtual host of your own on it."""
    broker = BrokerPod(node)
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()
