"""The chart as helm renders it, and as a real API server takes it."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from harness.toolchain import kubernetes_program
from harness.waiting import wait_for

ROOT = Path(__file__).parents[2]
CHART = str(ROOT / "charts" / "lunaq")
KINDS = ["brokers", "queues", "consumers"]
NAMESPACED = ("--set", "watchNamespaces={app,web}", "--set", "clusterID=west")


@pytest.fixture(scope="module")
def helm():
    program = kubernetes_program("helm", "scripts/build-kubernetes helm")

    def run(*args, check=True):
        return subprocess.run([program, *args], text=True, capture_output=True, check=check, timeout=120)

    return run


@pytest.fixture(scope="module")
def render(helm):
    def run(*args):
        # A helm that was built from source takes the cluster for Kubernetes 1.20 where it has none.
        options = ("-n", "lunaq-system", "--kube-version", "1.29.0")
        rendered = helm("template", "lunaq", CHART, *options, *args).stdout
        return [obj for obj in yaml.safe_load_all(rendered) if obj]

    return run


@pytest.fixture(scope="module")
def default(render):
    return render()


@pytest.fixture(scope="module")
def namespaced(render):
    return render(*NAMESPACED)


def one(objects, kind, name):
    (found,) = [obj for obj in objects if obj["kind"] == kind and obj["metadata"]["name"] == name]
    return found


def names(objects, kind):
    return {
        (obj["metadata"].get("namespace"), obj["metadata"]["name"]) for obj in objects if obj["kind"] == kind
    }


def granted(role):
    """Flatten a role: resource with its group, and the names it is limited to, to its verbs."""
    flat = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                key = f"{resource}.{group}".rstrip(".") + "".join(
                    f"/{name}" for name in rule.get("resourceNames", ())
                )
                flat[key] = sorted({*flat.get(key, ()), *rule["verbs"]})
    return flat


READ = ["get", "list", "watch"]
FOLLOW = ["list", "watch"]
OWN = ["create", "delete", "get", "list", "patch", "watch"]
IN_A_NAMESPACE = {
    **{f"{kind}.lunaq.dev": ["list", "patch", "watch"] for kind in KINDS},
    **{f"{kind}/status.lunaq.dev": ["patch"] for kind in KINDS},
    "consumers/finalizers.lunaq.dev": ["update"],
    "roles.rbac.authorization.k8s.io": FOLLOW,
    "rolebindings.rbac.authorization.k8s.io": FOLLOW,
    "configmaps": ["create", "get", "list", "patch", "watch"],
    "serviceaccounts": OWN,
    "deployments.apps": OWN,
    "pods": ["list", "patch"],
    "secrets": ["create", "delete", "get", "patch"],
    "events.events.k8s.io": ["create", "patch"],
}
IN_THE_CLUSTER = {
    "clusterroles.rbac.authorization.k8s.io": FOLLOW,
    "clusterrolebindings.rbac.authorization.k8s.io": FOLLOW,
    "namespaces": FOLLOW,
    "namespaces/kube-system": ["get"],
}


def test_lint_finds_nothing(helm):
    done = helm("lint", "--strict", "--kube-version", "1.29.0", CHART, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rendering_twice_gives_the_same(default, render):
    """Argo CD and Flux would show a difference for ever otherwise."""
    assert render() == default


def test_the_crds_are_rendered_unchanged(default):
    rendered = {obj["metadata"]["name"]: obj for obj in default if obj["kind"] == "CustomResourceDefinition"}
    canonical = [yaml.safe_load(path.read_text()) for path in (ROOT / "crds").glob("*.yaml")]
    assert rendered == {crd["metadata"]["name"]: crd for crd in canonical}


def test_the_crds_can_be_left_out(render):
    assert names(render("--set", "crds.install=false"), "CustomResourceDefinition") == set()


def test_the_operator_may_do_exactly_what_it_needs(default):
    assert granted(one(default, "ClusterRole", "lunaq")) == IN_A_NAMESPACE | IN_THE_CLUSTER
    binding = one(default, "ClusterRoleBinding", "lunaq")
    assert binding["roleRef"]["name"] == "lunaq"
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "lunaq", "namespace": "lunaq-system"}]


def test_the_lease_is_the_only_one_it_may_change(default):
    assert granted(one(default, "Role", "lunaq-lease")) == {
        "leases.coordination.k8s.io": ["create"],
        "leases.coordination.k8s.io/lunaq": ["get", "update"],
    }
    assert names(default, "Role") == {("lunaq-system", "lunaq-lease")}


def test_no_role_has_a_wildcard_or_a_right_to_escalate(default, namespaced):
    for obj in default + namespaced:
        for rule in obj.get("rules", ()):
            assert "*" not in json.dumps(rule)
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])


def test_a_namespaced_install_has_roles_and_nothing_in_the_cluster(namespaced):
    assert names(namespaced, "ClusterRole") == names(namespaced, "ClusterRoleBinding") == set()
    for namespace in ("app", "web"):
        own = [obj for obj in namespaced if obj["metadata"].get("namespace") == namespace]
        assert granted(one(own, "Role", "lunaq")) == IN_A_NAMESPACE
        assert one(own, "RoleBinding", "lunaq")["subjects"][0]["namespace"] == "lunaq-system"
        assert granted(one(own, "Role", "lunaq-consumer")) == {"queues.lunaq.dev": ["consume"]}


def test_a_namespaced_install_without_a_cluster_id_is_refused(helm):
    options = ("--kube-version", "1.29.0", "--set", "watchNamespaces={app}")
    done = helm("template", "lunaq", CHART, *options, check=False)
    assert done.returncode != 0
    assert "clusterID must be set with watchNamespaces" in done.stderr


def test_an_unknown_value_is_refused(helm):
    done = helm("template", "lunaq", CHART, "--kube-version", "1.29.0", "--set", "replica=2", check=False)
    assert done.returncode != 0
    assert "replica" in done.stderr


def test_an_old_kubernetes_is_refused(helm):
    done = helm("template", "lunaq", CHART, "--kube-version", "1.28.0", check=False)
    assert done.returncode != 0
    assert ">=1.29.0-0" in done.stderr


def test_the_roles_for_users(default):
    crud = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
    edit = {f"{kind}.lunaq.dev": crud for kind in KINDS}
    edit["consumers/scale.lunaq.dev"] = ["get", "patch", "update"]
    view = {f"{kind}.lunaq.dev": READ for kind in KINDS}
    view["consumers/scale.lunaq.dev"] = ["get"]
    publish = {"queues.lunaq.dev": ["publish"], "consumers.lunaq.dev": ["publish"]}
    admin = edit | {
        "queues.lunaq.dev": sorted([*crud, "consume", "publish"]),
        "consumers.lunaq.dev": sorted([*crud, "publish"]),
    }
    wanted = {
        "lunaq-consumer": ("", {"queues.lunaq.dev": ["consume"]}),
        "lunaq-publisher": ("", publish),
        "lunaq-admin": ("admin", admin),
        "lunaq-edit": ("edit", edit),
        "lunaq-view": ("view", view),
    }
    assert names(default, "ClusterRole") == {(None, name) for name in (*wanted, "lunaq")}
    for name, (aggregated_to, rules) in wanted.items():
        role = one(default, "ClusterRole", name)
        assert granted(role) == rules
        aggregated = [key for key in role["metadata"]["labels"] if "aggregate-to" in key]
        assert aggregated == (
            [f"rbac.authorization.k8s.io/aggregate-to-{aggregated_to}"] if aggregated_to else []
        )


def test_the_roles_for_users_can_be_left_out(render):
    assert names(render("--set", "userRoles.create=false"), "ClusterRole") == {(None, "lunaq")}


def pod_of(workload):
    return workload["spec"]["template"]["spec"]


def test_the_operators_arguments(default, render):
    (container,) = pod_of(one(default, "Deployment", "lunaq"))["containers"]
    assert container["command"] == ["lunaq-operator"]
    assert container["args"] == [
        "run",
        "--runtime-image=ghcr.io/lunaq/runtime:0.1.0",
        "--runtime-image-pull-policy=IfNotPresent",
        "--lease-name=lunaq",
        "--lease-namespace=$(POD_NAMESPACE)",
        "--log-format=json",
        "--log-level=info",
        "--health-port=8081",
    ]
    digest = f"sha256:{64 * 'a'}"
    objects = render(
        *NAMESPACED,
        *("--set", f"image.runtime.digest={digest}", "--set", f"image.operator.digest={digest}"),
        *("--set", "image.runtime.pullSecrets[0].name=registry", "--set", "log.level=debug"),
    )
    (container,) = pod_of(one(objects, "Deployment", "lunaq"))["containers"]
    assert container["image"] == f"ghcr.io/lunaq/operator@{digest}"
    assert container["args"] == [
        "run",
        f"--runtime-image=ghcr.io/lunaq/runtime@{digest}",
        "--runtime-image-pull-policy=IfNotPresent",
        "--runtime-image-pull-secret=registry",
        "--cluster-id=west",
        "--namespace=app",
        "--namespace=web",
        "--lease-name=lunaq",
        "--lease-namespace=$(POD_NAMESPACE)",
        "--log-format=json",
        "--log-level=debug",
        "--health-port=8081",
    ]


@pytest.mark.parametrize(("kind", "name"), [("Deployment", "lunaq"), ("Job", "lunaq-release-finalizers")])
def test_the_operator_knows_the_arguments(default, namespaced, kind, name):
    """Each is an option of the command as it is in the source; a typo would show in a cluster only."""
    from lunaq_operator.main import main  # noqa: PLC0415 - only this test needs the operator

    for objects in (default, namespaced):
        (container,) = pod_of(one(objects, kind, name))["containers"]
        command, *options = container["args"]
        main.commands[command].make_context(command, options)


@pytest.mark.parametrize(("kind", "name"), [("Deployment", "lunaq"), ("Job", "lunaq-release-finalizers")])
def test_pods_are_restricted(default, kind, name):
    pod = pod_of(one(default, kind, name))
    (container,) = pod["containers"]
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108 - the pod's own
    assert pod["volumes"] == [{"name": "tmp", "emptyDir": {}}]
    assert pod["serviceAccountName"] == "lunaq"
    assert container["resources"]["requests"]


def test_the_probes(default):
    (container,) = pod_of(one(default, "Deployment", "lunaq"))["containers"]
    assert container["ports"] == [{"name": "health", "containerPort": 8081}]
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "health"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "health"}


def test_finalizers_are_released_before_the_operator_goes(default, namespaced):
    job = one(default, "Job", "lunaq-release-finalizers")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete"
    assert pod_of(job)["containers"][0]["command"] == ["lunaq-operator"]
    operator = pod_of(one(default, "Deployment", "lunaq"))["containers"][0]["args"]
    lease = [arg for arg in operator if arg.startswith("--lease-")]
    assert len(lease) == 2, "the Job takes the operator's lease, so that it puts nothing back"
    assert pod_of(job)["containers"][0]["args"] == ["release-finalizers", *lease]
    job = one(namespaced, "Job", "lunaq-release-finalizers")
    args = pod_of(job)["containers"][0]["args"]
    assert args == ["release-finalizers", *lease, "--namespace=app", "--namespace=web"]


def test_every_value_shows_where_it_belongs(render, tmp_path):
    settings = {
        "fullnameOverride": "mail-operator",
        "replicas": 2,
        "imagePullSecrets": [{"name": "registry"}],
        "serviceAccount": {"name": "robot", "annotations": {"a": "b"}},
        "podLabels": {"team": "platform"},
        "podAnnotations": {"note": "x"},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
    }
    file = tmp_path / "values.json"
    file.write_text(json.dumps(settings))
    objects = render("-f", str(file))
    deployment = one(objects, "Deployment", "mail-operator")
    pod = pod_of(deployment)
    assert deployment["spec"]["replicas"] == 2
    assert pod["serviceAccountName"] == "robot"
    assert one(objects, "ServiceAccount", "robot")["metadata"]["annotations"] == {"a": "b"}
    assert one(objects, "ClusterRoleBinding", "mail-operator")["subjects"][0]["name"] == "robot"
    assert deployment["spec"]["template"]["metadata"]["labels"]["team"] == "platform"
    assert deployment["spec"]["template"]["metadata"]["annotations"] == {"note": "x"}
    for key in ("imagePullSecrets", "nodeSelector", "tolerations", "affinity", "priorityClassName"):
        assert pod[key] == settings[key]
    assert "--lease-name=mail-operator" in pod["containers"][0]["args"]


def test_labels_of_the_user_cannot_replace_the_selectors(render):
    objects = render("--set-json", 'podLabels={"app.kubernetes.io/component": "x"}')
    deployment = one(objects, "Deployment", "lunaq")
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize("options", [(), NAMESPACED], ids=["cluster", "namespaces"])
@pytest.mark.usefixtures("crds")
def test_the_api_server_takes_every_object(apiserver, render, options):
    for namespace in ("lunaq-system", "app", "web"):
        apiserver.kubectl("create", "namespace", namespace, check=False)
    objects = {"apiVersion": "v1", "kind": "List", "items": render(*options)}
    done = apiserver.kubectl(
        *("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-"),
        input=json.dumps(objects),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr


@pytest.fixture
def user_roles(apiserver, default):
    roles = [obj for obj in default if obj["kind"] == "ClusterRole" and obj["metadata"]["name"] != "lunaq"]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": roles})
    apiserver.kubectl("apply", "-f", "-", input=text)
    yield
    apiserver.kubectl("delete", "-f", "-", input=text)


@pytest.mark.usefixtures("crds", "user_roles")
def test_admin_edit_and_view_get_what_is_meant_for_them(apiserver, namespace):
    """The rights of Kubernetes' own roles, once its controller has added ours to them."""
    for role in ("admin", "edit", "view", "lunaq-publisher"):
        apiserver.kubectl(
            *("create", "rolebinding", role, "-n", namespace, f"--clusterrole={role}", f"--user={role}")
        )

    def may(user, verb, resource):
        asked = ("auth", "can-i", verb, resource, "-n", namespace, f"--as={user}")
        return apiserver.kubectl(*asked, check=False).stdout.strip() == "yes"

    wait_for(
        lambda: may("admin", "publish", "queues.lunaq.dev/emails"), "the roles to be added up", timeout=60
    )
    wait_for(lambda: may("view", "list", "queues.lunaq.dev"), "the roles to be added up", timeout=60)
    rights = [("consume", "queues"), ("publish", "queues"), ("publish", "consumers")]
    rights += [("create", "consumers"), ("get", "brokers")]
    got = {
        user: [may(user, verb, f"{resource}.lunaq.dev") for verb, resource in rights]
        for user in ("admin", "edit", "view", "lunaq-publisher")
    }
    assert got == {
        "admin": [True, True, True, True, True],
        "edit": [False, False, False, True, True],
        "view": [False, False, False, False, True],
        "lunaq-publisher": [False, True, True, False, False],
    }
    # Who may publish may grant it; who may only edit may not.
    grant = ("create", "role", "own", "--verb=publish", "--resource=queues.lunaq.dev", "-n", namespace)
    assert apiserver.kubectl(*grant, "--as=edit", check=False).returncode != 0
    assert apiserver.kubectl(*grant, "--as=admin", check=False).returncode == 0
