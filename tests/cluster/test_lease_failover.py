"""Two replicas: one leads, the other takes over, and whoever lost the lease ends."""

import os
import signal

import pytest
from operators import Operator

from harness.waiting import wait_for


@pytest.fixture
def two(apiserver, crds, namespace, tmp_path):  # noqa: ARG001 - the CRDs must be there
    shared = {"lease_name": f"lease-{namespace}", "namespaces": [namespace], "lease_namespace": namespace}
    pair = [Operator(apiserver, tmp_path, **shared).start() for _ in range(2)]
    try:
        wait_for(lambda: any(one.readiness().get("working") for one in pair), "one to lead")
        leader, standby = sorted(pair, key=lambda one: not one.readiness().get("working"))
        wait_for(lambda: standby.readiness().get("ok"), "the other to be ready")
        yield leader, standby
    finally:
        for one in pair:
            one.stop()


def test_only_one_of_two_leads_and_a_clean_stop_hands_over(two, apiserver, namespace):
    leader, standby = two
    lease = apiserver.get("lease", f"lease-{namespace}", "-n", namespace)
    assert lease["spec"]["holderIdentity"] == leader.settings["identity"]
    assert not standby.readiness()["working"]
    leader.stop()
    assert leader.exit_status == 0
    wait_for(lambda: standby.readiness()["working"], "the hand-over")


def test_a_frozen_leader_is_replaced_and_ends_when_it_wakes(two):
    leader, standby = two
    os.kill(leader.process.pid, signal.SIGSTOP)
    wait_for(lambda: standby.readiness()["working"], "the fail-over", 60)
    os.kill(leader.process.pid, signal.SIGCONT)
    wait_for(lambda: not leader.process.running, "the old leader to end")
    assert leader.exit_status == 1
