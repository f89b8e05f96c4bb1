"""Every name the operator gives or expects in the cluster, in one place; used by all other modules.

Names of Queues and Consumers are DNS labels, so a derived name with a dot in it (`emails.policy`) can
never be the name of another Consumer's object (design.md section 2).
"""

from __future__ import annotations

import re

GROUP = "lunaq.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

BROKER = "Broker"
QUEUE = "Queue"
CONSUMER = "Consumer"
KINDS = (BROKER, QUEUE, CONSUMER)
PLURALS = {BROKER: "brokers", QUEUE: "queues", CONSUMER: "consumers"}

LABEL_TEXT = "[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
"""A DNS label as a regular expression: any name of a namespace, Queue or Consumer, and nothing else."""

QUEUE_ID = re.compile(rf"({LABEL_TEXT}):({LABEL_TEXT})\Z")
"""A queue ID; its groups are namespace and name."""

FIELD_MANAGER = "lunaq-operator"
"""The manager of every server-side apply, and the component of every Event."""

FINALIZER = f"{GROUP}/cleanup"
"""Only on what must be cleaned up outside the cluster (`deletionPolicy: Delete`, a broker user)."""

LABEL_CONSUMER = f"{GROUP}/consumer"
"""On everything made for a Consumer; its value is the Consumer's name, and Deployments select by it."""

LABEL_BROKER = f"{GROUP}/broker"
"""On a Secret: the Broker that may use it; without it a Secret is refused."""

ANNOTATION_ENTRIES = f"{GROUP}/entries-checksum"
"""On pods: the entries document they run; a change rolls them."""

ANNOTATION_POLICY = f"{GROUP}/policy-checksum"
"""Patched onto running pods so that their kubelet syncs the policy at once; never in a pod template."""

ANNOTATION_CREDENTIALS = f"{GROUP}/credentials-changed"
"""Patched onto running pods so that their kubelet syncs the Secret at once; never in a pod template."""

ANNOTATION_ROTATE = f"{GROUP}/rotate"
"""On a Consumer: any new value has it get a new broker user, with another password."""

ANNOTATION_ROTATED_FOR = f"{GROUP}/rotated-for"
"""On a Consumer's Secret: the value of `ANNOTATION_ROTATE` that it was written for."""

ANNOTATION_ROTATED_AT = f"{GROUP}/rotated-at"
"""On a Consumer's Secret: when its user was made, RFC 3339."""

ANNOTATION_DELETE_MESSAGES = f"{GROUP}/delete-messages"
"""On a Queue: `"true"` lets `deletionPolicy: Delete` destroy a queue that still holds messages."""

CONTAINER = "runtime"
"""The name of the one container of a Consumer's pod."""


def consumer_labels(consumer: str) -> dict[str, str]:
    """Return the labels of every object made for the Consumer of that name."""
    return {
        "app.kubernetes.io/name": "lunaq-consumer",
        "app.kubernetes.io/instance": consumer,
        "app.kubernetes.io/component": "consumer",
        "app.kubernetes.io/managed-by": FIELD_MANAGER,
        LABEL_CONSUMER: consumer,
    }


def selector_labels(consumer: str) -> dict[str, str]:
    """Return what the Deployment and a PodDisruptionBudget select by; it can never change later."""
    return {LABEL_CONSUMER: consumer}


def deployment_name(consumer: str) -> str:
    """Name the Deployment of a Consumer."""
    return consumer


def service_account_name(consumer: str) -> str:
    """Name the ServiceAccount made for a Consumer that names none."""
    return consumer


def entries_config_map_name(consumer: str) -> str:
    """Name the ConfigMap that holds the entries document."""
    return consumer


def policy_config_map_name(consumer: str) -> str:
    """Name the ConfigMap that holds the policy."""
    return f"{consumer}.policy"


def credentials_secret_name(consumer: str) -> str:
    """Name the Secret with the Consumer's own broker user (`access: PerConsumer`)."""
    return f"{consumer}.broker"


def queue_owner(cluster: str, namespace: str, name: str) -> str:
    """Name the owner of a Queue's topology as it stands in the exchange's arguments."""
    return f"{cluster}/{namespace}/{name}"


def service_account_user(namespace: str, name: str) -> str:
    """Name the user that a ServiceAccount is to RBAC."""
    return f"system:serviceaccount:{namespace}:{name}"


def service_account_groups(namespace: str) -> tuple[str, ...]:
    """Name the groups that every ServiceAccount of a namespace is in."""
    return ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
