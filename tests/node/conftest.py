"""The chart, installed on the node; for the tests and proofs of this folder."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def lunaq(node):
    """The chart, installed as the README says, in a namespace of its own."""
    namespace = node.new_namespace()
    images = []
    for name in ("operator", "runtime"):
        repository, tag = node.images.split(getattr(node.images, name))
        images += ["--set", f"image.{name}.repository={repository}", "--set", f"image.{name}.tag={tag}"]
        images += ["--set", f"image.{name}.pullPolicy={node.images.pull_policy}"]
    chart = str(Path(__file__).parents[2] / "charts" / "lunaq")
    node.helm("install", "lunaq", chart, "-n", namespace, *images, "--wait", "--timeout", "120s")
    yield namespace
    node.helm("uninstall", "lunaq", "-n", namespace, "--wait", "--timeout", "120s")
    node.delete_namespace(namespace)
