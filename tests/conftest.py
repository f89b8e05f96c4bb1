"""The fixtures that every level shares, and the markers that follow from using them."""

import os

from hypothesis import HealthCheck, settings

# kubectl, helm and the HTTP clients under test must reach what the harness starts, not a proxy.
_LOCAL = "127.0.0.1,localhost,10.0.0.0/8"
os.environ["NO_PROXY"] = ",".join(filter(None, [os.environ.get("NO_PROXY"), _LOCAL]))
os.environ["no_proxy"] = os.environ["NO_PROXY"]

pytest_plugins = ["harness.fixtures"]

# A busy machine must not fail a property: no time limit per example, none for making one.
settings.register_profile("lunaq", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lunaq")
