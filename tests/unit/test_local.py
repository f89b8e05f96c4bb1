"""`lunaq run` on a laptop: the same decisions as in a cluster, and mistakes told by file, object, field."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from lunaq_operator.cli import main
from lunaq_operator.local import LocalError, LocalRun, plan_entries, plan_resources
from lunaq_operator.local.files import read
from lunaq_operator.local.plan import denied_publishes
from lunaq_runtime.ids import Id
from lunaq_runtime.policy import ALLOW_ALL, Policy

EXAMPLES = Path(__file__).parents[2] / "examples"
JOBS, DONE, WORKER = Id("app", "jobs"), Id("app", "done"), Id("app", "worker")

APP = """
apiVersion: lunaq.dev/v1alpha1
kind: Broker
metadata: {name: main}
spec: {uri: "amqp://main", credentialsSecretRef: {name: main}}
---
apiVersion: lunaq.dev/v1alpha1
kind: Queue
metadata: {name: jobs}
spec: {brokerRef: {name: main}, retry: {maxAttempts: 1}}
---
apiVersion: lunaq.dev/v1alpha1
kind: Queue
metadata: {name: done}
spec: {brokerRef: {name: main}, codec: msgpack}
---
apiVersion: lunaq.dev/v1alpha1
kind: Consumer
metadata: {name: worker}
spec:
  queueRef: {name: jobs}
  handler:
    source: |
      return function(job)
        return queue.publish("app:done", {got = job.n, region = env.get("REGION")})
      end
"""
RBAC = """
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: worker}
rules:
  - {apiGroups: [lunaq.dev], resources: [queues], resourceNames: [jobs], verbs: [consume]}
  - {apiGroups: [lunaq.dev], resources: [queues], resourceNames: [done], verbs: [publish]}
  - {apiGroups: [lunaq.dev], resources: [consumers], resourceNames: [worker], verbs: [publish]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: worker}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: worker}
subjects: [{kind: ServiceAccount, name: worker, namespace: app}]
"""


@pytest.fixture(name="write")
def write_files(tmp_path):
    def write(*texts: str) -> list[Path]:
        paths = []
        for number, text in enumerate(texts):
            path = tmp_path / f"{number}.yaml"
            path.write_text(text)
            paths.append(path)
        return paths

    return write


def plan_of(paths, **more):
    return plan_resources(read(paths), "app", {}, **more)


def problems_of(paths, **more) -> tuple[str, ...]:
    with pytest.raises(LocalError) as caught:
        plan_of(paths, **more)
    return caught.value.problems


def changed(text: str, kind: str, name: str, **spec) -> str:
    """Return the documents with one object's spec changed; a value of None removes the field."""
    documents = list(yaml.safe_load_all(text))
    for document in documents:
        if (document["kind"], document["metadata"]["name"]) == (kind, name):
            document["spec"] |= spec
            document["spec"] = {key: value for key, value in document["spec"].items() if value is not None}
    return yaml.safe_dump_all(documents)


async def until(condition) -> None:
    """Wait for a condition; the test's own time limit is the deadline."""
    while not await condition():  # noqa: ASYNC110 - a broker's contents give no signal
        await asyncio.sleep(0.01)


async def run_one(plan, job) -> LocalRun:
    """Run a plan until one job is through: handled or dead."""
    local = LocalRun(plan)
    await local.start()
    try:
        await local.until_ready()
        await local.publish(JOBS, job)

        async def through() -> bool:
            return bool(local.messages(DONE) or local.messages(JOBS, dead=True))

        await until(through)
    finally:
        await local.stop()
    return local


# --- what runs


async def test_resources_run_as_in_a_cluster(write):
    local = await run_one(plan_of(write(APP, RBAC)), {"n": 7})
    [(value, properties)] = local.messages(DONE)
    assert value == {"got": 7}
    assert properties.content_type == "application/msgpack"


async def test_rbac_in_the_files_is_the_policy(write):
    plan = plan_of(write(APP, RBAC.replace("resourceNames: [done]", "resourceNames: [other]")))
    assert plan.policies == {WORKER: Policy(True, ("app:other",), ("app:jobs",))}
    local = await run_one(plan, {"n": 7})
    [(_, properties)] = local.messages(JOBS, dead=True)
    assert properties.headers["x_error_kind"] == "PermissionDenied"


async def test_without_rbac_nothing_is_consumed_and_the_command_is_told(write):
    plan = plan_of(write(APP))
    assert plan.policies == {WORKER: Policy()}
    [note] = plan.notes
    assert "Consumer app/worker consumes nothing" in note
    assert "kubectl create role lunaq:consume:queues:jobs" in note
    local = LocalRun(plan)
    await local.start()
    await local.publish(JOBS, {"n": 1})
    assert not local.ready
    await local.stop()
    assert len(local.messages(JOBS)) == 1


async def test_allow_all_needs_no_rbac(write):
    plan = plan_of(write(APP), allow_all=True)
    assert (plan.policies, plan.notes) == ({WORKER: ALLOW_ALL}, ())
    local = await run_one(plan, {"n": 1})
    assert len(local.messages(DONE)) == 1


async def test_values_and_code_of_config_maps_and_secrets_in_the_files_are_followed(write):
    handler = {
        "sourceFrom": {"configMapKeyRef": {"name": "code", "key": "main.lua"}},
        "env": [{"name": "REGION", "valueFrom": {"secretKeyRef": {"name": "s", "key": "region"}}}],
    }
    [worker] = [one for one in yaml.safe_load_all(APP) if one["kind"] == "Consumer"]
    lua = worker["spec"]["handler"]["source"]
    values = yaml.safe_dump_all(
        [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "code"},
                "data": {"main.lua": lua},
            },
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"region": "ZXU="}},
        ]
    )
    plan = plan_of(write(changed(APP, "Consumer", "worker", handler=handler), RBAC, values))
    local = await run_one(plan, {"n": 1})
    assert local.messages(DONE)[0][0] == {"got": 1, "region": "eu"}


async def test_an_observed_queue_is_there_to_be_consumed(write):
    text = changed(APP, "Queue", "jobs", managementPolicy="Observe", queueName="theirs", retry=None)
    local = await run_one_of_an_observed_queue(plan_of(write(text, RBAC)))
    assert len(local.messages(DONE)) == 1


async def run_one_of_an_observed_queue(plan) -> LocalRun:
    local = LocalRun(plan)
    await local.start()
    await local.until_ready()
    await local.publish(JOBS, {"n": 1})

    async def handled() -> bool:
        return bool(local.messages(DONE))

    await until(handled)
    await local.stop()
    return local


async def test_an_entries_document_runs_with_its_own_policy():
    [found] = read([EXAMPLES / "entries" / "entries.yaml"])
    plan = plan_entries(found, {})
    assert plan.notes == ()
    local = LocalRun(plan)
    await local.start()
    await local.until_ready()
    await local.publish(Id("app", "orders"), {"id": 1, "items": [{"price": 2, "quantity": 3}]})

    async def settled() -> bool:
        orders = Id("app", "orders")
        return bool(local.messages(Id("app", "receipts")) or local.messages(orders, dead=True))

    await until(settled)
    await local.stop()
    assert len(local.messages(Id("app", "receipts"))) == 1


def test_objects_without_a_namespace_are_in_the_given_one(write):
    plan = plan_resources(read(write(APP)), "mail", {})
    assert set(map(str, plan.queues)) == {"mail:jobs", "mail:done"}


def test_a_folder_counts_as_its_yaml_files(write, tmp_path):
    write(APP, RBAC)
    (tmp_path / "README.md").write_text("not: {yaml")
    assert len(plan_of([tmp_path]).queues) == 2


def test_a_list_counts_as_its_items(write):
    items = list(yaml.safe_load_all(APP))
    [path] = write(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": items}))
    assert len(plan_of([path]).queues) == 2


def test_a_suspended_consumer_does_not_run_and_this_is_told(write):
    plan = plan_of(write(changed(APP, "Consumer", "worker", suspend=True)))
    assert plan.documents == ()
    assert plan.notes == ("Consumer app/worker does not run: suspend is true",)


def test_other_kinds_are_ignored_with_a_note(write):
    other = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}}"
    account = "{apiVersion: v1, kind: ServiceAccount, metadata: {name: worker}}"
    paths = write(APP, RBAC, other, account)
    assert plan_of(paths).notes == (
        f"{paths[2]}: Deployment app/web is ignored: only Lunaq's and RBAC's kinds count",
    )


# --- mistakes


@pytest.mark.parametrize(
    ("kind", "name", "spec", "text"),
    [
        ("Queue", "jobs", {"tipe": "x"}, "Queue app/jobs: spec.tipe: is not a field of Queue"),
        ("Queue", "jobs", {"messageTTL": "1d"}, "Queue app/jobs: spec.messageTTL: '1d' is not a duration"),
        (
            "Queue",
            "jobs",
            {"brokerRef": {"name": "x"}},
            "Queue app/jobs: BrokerMissing: there is no Broker x",
        ),
        (
            "Queue",
            "jobs",
            {"deadLetter": {"queueRef": {"name": "x"}}},
            "Queue app/jobs: QueueMissing: spec.deadLetter.queueRef: there is no Queue x",
        ),
        (
            "Queue",
            "done",
            {"brokerRef": {"name": "main"}, "queueName": "a"},
            None,
        ),
        (
            "Consumer",
            "worker",
            {"queueRef": {"name": "x"}},
            "Consumer app/worker: spec.queueRef: there is no Queue x",
        ),
        (
            "Consumer",
            "worker",
            {"handler": {"source": "x = = 1"}},
            "Consumer app/worker: the Lua does not compile: app:worker:1:",
        ),
        (
            "Consumer",
            "worker",
            {"handler": {"sourceFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}},
            "Consumer app/worker: spec.handler.sourceFrom.configMapKeyRef: no ConfigMap c with a key k",
        ),
        ("Broker", "main", {"uri": "http://x"}, "Broker app/main: spec.uri: must begin with amqp://"),
    ],
)
def test_a_mistake_is_told_by_file_object_and_field(write, kind, name, spec, text):
    [path] = write(changed(APP, kind, name, **spec))
    if text is None:
        plan_of([path])
        return
    problems = problems_of([path])
    assert any(one.startswith(f"{path} (document ") and text in one for one in problems), problems


def test_two_queues_of_one_broker_side_name_are_refused(write):
    text = changed(changed(APP, "Queue", "jobs", queueName="q"), "Queue", "done", queueName="q")
    [problem] = problems_of(write(text))
    assert "Queue app/done: Conflict: Queue app/jobs is older" in problem


def test_all_mistakes_are_told_at_once(write):
    text = changed(changed(APP, "Queue", "done", codec="xml"), "Queue", "jobs", type="Stream")
    assert sum("spec.codec" in one or "spec.type" in one for one in problems_of(write(text))) == 2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [}", "line 1"),
        ("a: 1\na: 2", "line 2: the key 'a' stands here twice"),
        ("- a", "must be an object"),
        ("kind: Queue\napiVersion: x", "needs apiVersion, kind and metadata.name"),
        ("", "there is no document"),
    ],
)
def test_a_file_that_is_no_manifest_is_named(write, text, problem):
    paths = write(text)
    with pytest.raises(LocalError) as caught:
        plan_of(paths)
    assert problem in caught.value.problems[0]


def test_an_object_that_is_there_twice_is_refused(write):
    paths = write(APP, RBAC, APP)
    assert f"{paths[2]} (document 1): Broker app/main is in {paths[0]} (document 1) already" in problems_of(
        paths
    )


@pytest.mark.parametrize("field", [{"rules": "x"}, {"rules": ["x"]}])
def test_an_rbac_object_of_a_wrong_form_is_refused(write, field):
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "r"}} | field
    [problem] = problems_of(write(APP, yaml.safe_dump(role)))[:1]
    assert "Role app/r: rules: must be a list of objects" in problem


# --- the command line


def test_check_tells_what_rbac_would_deny(write):
    plan = plan_of(write(APP, RBAC.replace("[done]", "[other]")))
    assert denied_publishes(plan) == ["Consumer app:worker publishes to app:done, which its policy denies"]


def test_check_says_ok_or_tells_the_mistakes(write):
    result = CliRunner().invoke(main, ["check", *map(str, write(APP, RBAC))])
    assert (result.exit_code, result.output) == (0, "ok: 2 queues, 1 consumers\n")
    bad = write(APP, "kind: Queue")
    result = CliRunner().invoke(main, ["check", *map(str, bad)])
    assert result.exit_code == 2
    assert f"error: {bad[1]}: needs apiVersion" in result.output


@pytest.mark.parametrize(
    ("message", "text"),
    [("jobs", "there is no '='"), ("jobs={", "jobs={"), ("nope={}", "there is no Queue app:nope")],
)
def test_a_message_that_cannot_be_published_is_refused_at_once(write, message, text):
    result = CliRunner().invoke(main, ["run", *map(str, write(APP, RBAC)), "--publish", message])
    assert result.exit_code == 2
    assert text in result.output


@pytest.mark.parametrize(
    ("command", "example"),
    [
        ([], "lunaq run examples/emails"),
        (["run"], "lunaq run examples/emails"),
        (["check"], "lunaq check examples/emails"),
        (["explain-permissions"], "lunaq explain-permissions email-worker -f examples/emails"),
    ],
)
def test_help_teaches_with_examples(command, example):
    result = CliRunner().invoke(main, [*command, "--help"])
    assert result.exit_code == 0
    assert example in result.output


def explained(paths, *more):
    files = [word for path in paths for word in ("-f", str(path))]
    result = CliRunner().invoke(main, ["explain-permissions", "worker", *files, *more])
    return result.exit_code, result.output


def test_permissions_are_explained_by_the_files_alone(write):
    code, text = explained(write(APP, RBAC))
    assert code == 0
    assert "consume         app:jobs  RoleBinding app/worker -> Role app/worker" in text
    assert "publish to      app:done  RoleBinding app/worker -> Role app/worker" in text
    assert "Missing" not in text


def test_what_the_handler_needs_and_lacks_comes_with_the_command_that_grants_it(write):
    code, text = explained(write(APP, RBAC.replace("[done]", "[other]")))
    assert code == 1
    assert (
        "Missing: publish to app:done. Grant it with:\n  kubectl create role lunaq:publish:queues:done"
        in text
    )


def test_a_consumer_that_is_not_in_the_files_cannot_be_explained(write):
    code, text = explained(write(RBAC))
    assert code == 2
    assert "error: there is no Consumer app/worker in the given files; there are: none" in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_runs_until_it_is_told_to_end(write, number):
    paths = write(APP, RBAC)
    process = subprocess.Popen(
        [sys.executable, "-m", "lunaq_operator", "run", *map(str, paths), "-p", 'jobs={"n": 1}'],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "published" in line:
            process.send_signal(number)
            break
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0, "".join(lines) + rest


def test_a_broker_that_cannot_be_reached_ends_the_command(write):
    done = subprocess.run(
        [sys.executable, "-m", "lunaq_operator", "run", *map(str, write(APP, RBAC))],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"LUNAQ_BROKER_URL": "amqp://user:hunter2@127.0.0.1:1/"},
    )
    assert done.returncode == 1
    assert "lunaq: the broker refused" in done.stderr
    assert "hunter2" not in done.stderr
