"""`lunaq-operator release-finalizers`, with the operator running and without."""

import subprocess
import sys
from pathlib import Path

from operators import Operator

from harness.waiting import wait_for


def _release(app, *args) -> str:
    program = Path(sys.executable).parent / "lunaq-operator"
    done = subprocess.run(
        [program, "release-finalizers", f"--namespace={app.namespace}", *args],
        env=app.cluster.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def _finalizers(app) -> list:
    return app.get("queue", "emails")["metadata"].get("finalizers", [])


def test_a_running_operator_does_not_put_released_finalizers_back(apiserver, crds, app, tmp_path):  # noqa: ARG001
    lease = {"lease_name": "operator", "lease_namespace": app.namespace}
    operator = Operator(apiserver, tmp_path, namespaces=[app.namespace], **lease).start().wait_working()
    try:
        app.secret()
        app.own_users()
        app.queue("emails", deletionPolicy="Delete")
        app.allow_consuming()
        app.consumer()
        app.wait_ready("queue", "emails")
        wait_for(app.credentials, "the Consumer's user")
        assert _finalizers(app) == ["lunaq.dev/cleanup"]
        _release(app, "--lease-name=operator", f"--lease-namespace={app.namespace}")
        wait_for(lambda: operator.exit_status == 1, "the operator to end")
        assert _finalizers(app) == []
        before = app.broker_names()
        app.kubectl("delete", "queue", "emails", "--timeout=30s")
        assert app.broker_names() == before
        for kind, name in (("consumer", "worker"), ("broker", "main")):
            app.kubectl("delete", kind, name, "--timeout=30s")
    finally:
        operator.stop()


def test_objects_that_hang_without_an_operator_are_let_go(crds, app):  # noqa: ARG001
    app.queue("emails", deletionPolicy="Delete")
    patch = '{"metadata": {"finalizers": ["example.test/theirs", "lunaq.dev/cleanup"]}}'
    app.kubectl("patch", "queue", "emails", "--type=merge", "-p", patch)
    app.kubectl("delete", "queue", "emails", "--wait=false")
    assert "Released Queue" in _release(app)
    assert _finalizers(app) == ["example.test/theirs"]
    app.kubectl(
        "patch", "queue", "emails", "--type=json", "-p", '[{"op":"remove","path":"/metadata/finalizers"}]'
    )
