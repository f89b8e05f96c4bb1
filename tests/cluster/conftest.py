"""Fixtures of the tests that run an operator against a real API server and a real RabbitMQ."""

from collections.abc import Iterator

import pytest
from operators import App, Operator


@pytest.fixture(scope="module")
def operator_settings() -> dict:
    """What a module's operator runs with beside the quick settings; a module overrides it."""
    return {}


@pytest.fixture(scope="module")
def operator(apiserver, crds, tmp_path_factory, operator_settings) -> Iterator[Operator]:  # noqa: ARG001 - the CRDs must be there
    """One operator for the tests of a module, cluster-wide."""
    process = Operator(apiserver, tmp_path_factory.mktemp("operator"), **operator_settings)
    try:
        yield process.start().wait_working()
    finally:
        process.stop()


@pytest.fixture
def app(apiserver, namespace, rabbitmq, vhost) -> App:
    """One application: an empty namespace, with a virtual host for it."""
    return App(apiserver, namespace, rabbitmq, vhost)
