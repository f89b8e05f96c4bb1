"""What a Consumer may do, why, and what it lacks: `lunaq explain-permissions`, from files or a cluster.

The same evaluation as the operator's. Where its caller may not list RBAC objects, what the operator wrote
into the Consumer's status is shown instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lunaq_operator import explain, kinds, kube
from lunaq_operator.explain import Account
from lunaq_operator.kube import Kube, KubeError
from lunaq_operator.local import plan as planning
from lunaq_operator.local.files import LocalError
from lunaq_operator.rbac import Rbac
from lunaq_operator.resources import SpecError, parse_consumer
from lunaq_runtime.ids import Id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lunaq_operator.local.files import Found
    from lunaq_operator.rbac import Derived
    from lunaq_operator.resources import Consumer

_FORBIDDEN = 403
_BUILD_ORDER = (kinds.ROLES, kinds.ROLE_BINDINGS, kinds.CLUSTER_ROLES, kinds.CLUSTER_ROLE_BINDINGS)


@dataclass(frozen=True, slots=True)
class Explanation:
    """`text` is for a terminal, `complete` says whether nothing that it needs is missing."""

    text: str
    complete: bool
    note: str = ""


def from_files(found: Sequence[Found], namespace: str, name: str) -> Explanation:
    """Explain a Consumer of the files by the RBAC objects in them; LocalError has every mistake."""
    rbac, consumers = planning.rights(found, namespace)
    consumer = next((one for one in consumers if one.key == (namespace, name)), None)
    if consumer is None:
        known = ", ".join(sorted("/".join(one.key) for one in consumers)) or "none"
        raise LocalError([f"there is no Consumer {namespace}/{name} in the given files; there are: {known}"])
    return _explain(consumer, rbac.derive(consumer.namespace, consumer.name, consumer.service_account))


async def from_cluster(kubeconfig: str, namespace: str, name: str) -> Explanation:
    """Explain a Consumer of the cluster that `kubeconfig` (or KUBECONFIG, or ~/.kube/config) names.

    LocalError where it cannot be read.
    """
    try:
        client = Kube(await kube.load(kubeconfig))
    except Exception as error:
        raise LocalError([f"no cluster can be found: {error}; give FILEs or --kubeconfig"]) from error
    try:
        obj = await client.get(kinds.CONSUMERS, namespace, name)
        if obj is None:
            raise LocalError([f"there is no Consumer {namespace}/{name} in the cluster"])
        consumer = parse_consumer(obj)
        try:
            rbac = Rbac.build(*[await client.list(kind) for kind in _BUILD_ORDER])
        except KubeError as error:
            if error.status != _FORBIDDEN:
                raise
            return _by_status(consumer, (obj.get("status") or {}).get("permissions"))
        return _explain(consumer, rbac.derive(namespace, name, consumer.service_account))
    except (KubeError, SpecError) as error:
        raise LocalError([str(error)]) from error
    finally:
        await client.close()


def _by_status(consumer: Consumer, status: dict[str, Any] | None) -> Explanation:
    if status is None:
        raise LocalError(
            ["you may not list the cluster's RBAC objects, and the operator has not written a status yet"]
        )
    found = _explain(consumer, explain.from_status(status))
    note = "you may not list the cluster's RBAC objects: this is what the operator wrote into the status"
    return Explanation(found.text, found.complete, note)


def _explain(consumer: Consumer, derived: Derived) -> Explanation:
    account = Account(consumer.namespace, consumer.service_account)
    queue = (consumer.queue_ref.namespace, consumer.queue_ref.name)
    lacks = explain.missing(account, consumer.name, queue, _targets(consumer), derived.policy)
    return Explanation(explain.describe(account, consumer.name, derived, lacks), complete=not lacks)


def _targets(consumer: Consumer) -> list[tuple[str, str]]:
    """Return the queues that the inline code publishes to by a literal ID."""
    handler = consumer.handler
    sources = [handler.source, *(library.source for library in handler.libraries)]
    found = []
    for text in planning.published_to(sources):
        try:
            queue = Id.parse(text)
        except ValueError:
            continue  # refused when it is called, whatever RBAC says
        found.append((queue.namespace, queue.name))
    return found
