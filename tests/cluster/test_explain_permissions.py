"""`lunaq explain-permissions` asks the cluster of the kubeconfig, or what the operator wrote there."""

import json
import subprocess
import sys

import pytest

from harness.waiting import wait_for

pytestmark = pytest.mark.usefixtures("operator")


@pytest.fixture
def worker(app):
    app.secret()
    app.broker()
    app.queue("emails")
    app.allow_consuming()
    app.consumer(source=f'return function() return queue.publish("{app.namespace}:sent", {{}}) end')
    wait_for(lambda: (app.get("consumer", "worker").get("status") or {}).get("permissions"), "the status")
    return app


def explain(app, kubeconfig):
    command = [sys.executable, "-m", "lunaq_operator", "explain-permissions", "worker", "-n", app.namespace]
    return subprocess.run(
        [*command, "--kubeconfig", str(kubeconfig)], capture_output=True, text=True, timeout=60, check=False
    )


def as_reader_of_consumers(app, path):
    """Write the kubeconfig of somebody who may read Consumers and nothing else."""
    app.kubectl("create", "serviceaccount", "reader")
    app.kubectl("create", "role", "reader", "--verb=get", "--resource=consumers.lunaq.dev")
    app.kubectl(
        "create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={app.namespace}:reader"
    )
    config = json.loads(app.kubectl("config", "view", "--raw", "--minify", "-o", "json").stdout)
    config["users"][0]["user"] = {"token": app.kubectl("create", "token", "reader").stdout.strip()}
    path.write_text(json.dumps(config))
    return path


def test_it_names_what_grants_a_right_and_the_command_for_what_is_missing(worker, tmp_path):
    app = worker
    done = explain(app, app.cluster.kubeconfig)
    binding, role = f"RoleBinding {app.namespace}/consume", f"Role {app.namespace}/consume"
    assert f"consume         {app.namespace}:*  {binding} -> {role}" in done.stdout, done.stderr
    assert f"Missing: publish to {app.namespace}:sent. Grant it with:" in done.stdout
    assert done.returncode == 1
    limited = explain(app, as_reader_of_consumers(app, tmp_path / "reader"))
    assert limited.stdout == done.stdout
    assert "you may not list the cluster's RBAC objects" in limited.stderr


def test_what_cannot_be_read_is_told(worker, tmp_path):
    app = worker
    app.kubectl("delete", "consumer", "worker")
    missing = explain(app, app.cluster.kubeconfig)
    assert (missing.returncode, missing.stdout) == (2, "")
    assert f"error: there is no Consumer {app.namespace}/worker in the cluster" in missing.stderr
    nowhere = explain(app, tmp_path / "nothing")
    assert nowhere.returncode == 2
    assert "error: no cluster can be found" in nowhere.stderr
