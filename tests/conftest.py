"""The fixtures that every level shares, and the markers that follow from using them."""

import os

# kubectl, helm and the HTTP clients under test must reach what the harness starts, not a proxy.
_LOCAL = "127.0.0.1,localhost,10.0.0.0/8"
os.environ["NO_PROXY"] = ",".join(filter(None, [os.environ.get("NO_PROXY"), _LOCAL]))
os.environ["no_proxy"] = os.environ["NO_PROXY"]

pytest_plugins = ["harness.fixtures"]
