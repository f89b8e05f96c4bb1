"""What the tests may do with any Kubernetes cluster: one of their own, or one named by the environment.

The base of harness.apiserver.ApiServer and harness.node.Node.
"""

import dataclasses
import json
import os
import secrets
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.toolchain import ROOT, kubernetes_program, system_program
from harness.waiting import wait_for

Manifests = str | Mapping[str, Any] | Iterable[Mapping[str, Any]]


class KubectlError(RuntimeError):
    """kubectl failed; the text is its command and what it printed."""


def external_kubeconfig() -> Path | None:
    """Give the file that LUNAQ_TEST_KUBECONFIG names, or None; FileNotFoundError if it is not there."""
    text = os.environ.get("LUNAQ_TEST_KUBECONFIG")
    if not text:
        return None
    path = Path(text).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"LUNAQ_TEST_KUBECONFIG names {path}, which is not a file")
    return path


@dataclasses.dataclass(frozen=True)
class Answer:
    """What an API server says to a write: the object as stored, or else the text of its refusal."""

    obj: Any = None
    refusal: str = ""


class Cluster:
    """A cluster whose administrator the tests are.

    Args:
        kubeconfig: the administrator's.

    Attributes:
        kubeconfig: the same, as a path.
    """

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        # The discovery cache of kubectl and helm goes by host and port, and ports are used again.
        self._cache = tempfile.TemporaryDirectory(prefix="lq-kubectl-", ignore_cleanup_errors=True)
        if external_kubeconfig():
            self._kubectl = system_program("kubectl", "scripts/setup-cluster")
        else:
            self._kubectl = kubernetes_program("kubectl")

    @property
    def program(self) -> str:
        """The path of kubectl."""
        return self._kubectl

    def environment(self) -> dict[str, str]:
        """Give the environment in which kubectl, helm and the operator find this cluster."""
        return os.environ | {
            "KUBECONFIG": str(self.kubeconfig),
            "KUBECACHEDIR": self._cache.name,
            "HELM_CACHE_HOME": f"{self._cache.name}/helm",
            "HELM_CONFIG_HOME": f"{self._cache.name}/helm",
            "HELM_DATA_HOME": f"{self._cache.name}/helm",
        }

    def kubectl(
        self,
        *args: str,
        input: str | None = None,  # noqa: A002 - named as in subprocess.run
        check: bool = True,
        as_user: str | None = None,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl.

        Args:
            args: its arguments.
            input: what it reads from standard input.
            check: whether a failure raises.
            as_user: whom to impersonate, such as `system:serviceaccount:app:worker`.
            timeout: in seconds.

        Raises:
            KubectlError: it failed, and `check` is true.
        """
        command = [self._kubectl, *([f"--as={as_user}"] if as_user else []), *args]
        done = subprocess.run(
            command,
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self.environment(),
            check=False,
        )
        if check and done.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(command[1:])} failed:\n{done.stdout}{done.stderr}")
        return done

    def apply(self, manifests: Manifests, *, as_user: str | None = None) -> str:
        """Apply YAML text, an object or a list of objects, as `kubectl apply` does; give what it prints."""
        if isinstance(manifests, str):
            text = manifests
        else:
            items = [manifests] if isinstance(manifests, Mapping) else list(manifests)
            text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        return self.kubectl("apply", "-f", "-", input=text, as_user=as_user).stdout

    def create(self, obj: Mapping[str, Any], namespace: str, *, dry_run: bool = False) -> Answer:
        """Create an object, unknown fields refused; `dry_run` only asks whether it would be taken."""
        return self._submit("create", obj, namespace, *(["--dry-run=server"] if dry_run else []))

    def replace(self, obj: Mapping[str, Any], namespace: str) -> Answer:
        """Put an object in the place of the one of its name."""
        return self._submit("replace", obj, namespace)

    def _submit(self, verb: str, obj: Mapping[str, Any], namespace: str, *options: str) -> Answer:
        command = (verb, "-n", namespace, "-f", "-", "-o", "json", *options)
        done = self.kubectl(*command, input=json.dumps(obj), check=False)
        return Answer(refusal=done.stderr) if done.returncode else Answer(json.loads(done.stdout))

    def get(self, *args: str) -> Any:
        """Give what `kubectl get ... -o json` prints, decoded; None if the object does not exist."""
        text = self.kubectl("get", *args, "-o", "json", "--ignore-not-found").stdout
        return json.loads(text) if text.strip() else None

    def new_namespace(self) -> str:
        """Make a namespace of a random name, wait until pods could be made in it, and give the name."""
        name = f"lq-{secrets.token_hex(4)}"
        self.kubectl("create", "namespace", name)
        wait_for(
            lambda: self.get("serviceaccount", "default", "-n", name),
            f"the default service account of namespace {name}",
        )
        return name

    def delete_namespace(self, name: str) -> None:
        """Begin to delete a namespace, without waiting for its end."""
        self.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")

    def install_crds(self) -> None:
        """Apply crds/*.yaml and wait until the API server serves them."""
        files = sorted((ROOT / "crds").glob("*.yaml"))
        if not files:
            raise FileNotFoundError(f"no custom resource definitions in {ROOT / 'crds'}")
        named = [argument for file in files for argument in ("-f", str(file))]
        self.kubectl("apply", "--server-side", "--force-conflicts", *named)
        self.kubectl("wait", "--for=condition=Established", "--timeout=30s", *named)

    def stop(self) -> None:
        """Forget what was cached about the cluster; the cluster itself goes on."""
        self._cache.cleanup()
