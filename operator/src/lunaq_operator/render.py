"""The Kubernetes objects of a Consumer as whole server-side apply documents; called by its reconciler.

Pure: the same Consumer, text and settings give the same objects, byte by byte, so that comparing them with
what the cluster holds tells whether anything must be written. What runs is clean under the Pod Security
Standard "restricted".
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from lunaq_operator import names, pod_tls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lunaq_operator.pod_tls import PodTls
    from lunaq_operator.resources import Consumer

Manifest = dict[str, Any]

ENTRIES_KEY = "entries.yaml"
POLICY_KEY = "policy.yaml"
ENTRIES_PATH = "/etc/lunaq/entries"
POLICY_PATH = "/etc/lunaq/policy"
CREDENTIALS_PATH = "/etc/lunaq/credentials"
HEALTH_PORT = 8080
USER = 65532
"""The image's user and group: `nonroot`, as distroless images have it."""

GRACE_MARGIN_SECONDS = 15
"""Beyond `drainTimeout`: for interrupting what still runs, outstanding confirms, and closing."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """How this installation runs pods."""

    image: str
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    otlp_endpoint: str = ""


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, so that Lua stays readable in `kubectl get -o yaml`."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def to_text(document: Mapping[str, Any]) -> str:
    """Write a document as YAML, always the same for equal documents."""
    return yaml.dump(dict(document), Dumper=_Dumper, sort_keys=True, allow_unicode=True, width=1_000_000)


def checksum(text: str) -> str:
    """Return a text's SHA-256, as annotations carry it."""
    return hashlib.sha256(text.encode()).hexdigest()


def service_account(consumer: Consumer) -> Manifest | None:
    """Return the Consumer's own ServiceAccount; None where the spec names another."""
    if consumer.service_account_name:
        return None
    account = _object(consumer, "v1", "ServiceAccount", names.service_account_name(consumer.name))
    return {**account, "automountServiceAccountToken": False}


def entries_config_map(consumer: Consumer, entries: str) -> Manifest:
    """Return the ConfigMap that holds the entries document's text."""
    config = _object(consumer, "v1", "ConfigMap", names.entries_config_map_name(consumer.name))
    return {**config, "data": {ENTRIES_KEY: entries}}


def policy_config_map(consumer: Consumer, policy: str) -> Manifest:
    """Return the ConfigMap that holds the policy document's text."""
    config = _object(consumer, "v1", "ConfigMap", names.policy_config_map_name(consumer.name))
    return {**config, "data": {POLICY_KEY: policy}}


def credentials_secret(
    consumer: Consumer, username: str, password: str, annotations: Mapping[str, str]
) -> Manifest:
    """Return the Secret with the Consumer's own broker user."""
    secret = _object(consumer, "v1", "Secret", names.credentials_secret_name(consumer.name))
    data = {
        key: base64.b64encode(text.encode()).decode()
        for key, text in (("username", username), ("password", password))
    }
    return {
        **secret,
        "metadata": {**secret["metadata"], "annotations": dict(annotations)},
        "type": "Opaque",
        "data": data,
    }


def deployment(
    consumer: Consumer,
    *,
    entries: str,
    credentials_secret: str,
    runtime: Runtime,
    replicas: int,
    tls: PodTls | None = None,
) -> Manifest:
    """Return the Deployment.

    Its pods carry the checksum of the entries and so are replaced when those change; the policy's is not
    there, because a changed right must reach running pods without a restart.
    """
    template = consumer.template
    pod_metadata = {
        "labels": {**template.labels, **names.consumer_labels(consumer.name)},
        "annotations": {**template.annotations, names.ANNOTATION_ENTRIES: checksum(entries)},
    }
    return {
        **_object(consumer, "apps/v1", "Deployment", names.deployment_name(consumer.name)),
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 3,
            "selector": {"matchLabels": names.selector_labels(consumer.name)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {
                "metadata": pod_metadata,
                "spec": _with_tls(
                    _pod(consumer, credentials_secret=credentials_secret, runtime=runtime), tls
                ),
            },
        },
    }


def wanted_replicas(consumer: Consumer, *, runnable: bool, scaled: int | None = None) -> int:
    """Return how many pods there should be.

    `runnable` false: it was never authorized, or the time after a withdrawal is over. `scaled` is the
    scaler's figure; without one, `replicas` of the spec counts.
    """
    if consumer.suspend or not runnable:
        return 0
    if consumer.scaling is None or scaled is None:
        return consumer.replicas
    return max(consumer.scaling.min_replicas, min(scaled, consumer.scaling.max_replicas))


def owner_reference(consumer: Consumer) -> Manifest:
    """Return the reference by which an object is ours and goes with its Consumer."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.CONSUMER,
        "name": consumer.name,
        "uid": consumer.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def owned_by(obj: Mapping[str, Any], consumer: Consumer) -> bool:
    """Tell whether an existing object is this very Consumer's; what is not must not be written."""
    references = (obj.get("metadata") or {}).get("ownerReferences") or ()
    return any(ref.get("uid") == consumer.uid and ref.get("controller") for ref in references)


def _object(consumer: Consumer, api_version: str, kind: str, name: str) -> Manifest:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": consumer.namespace,
            "labels": names.consumer_labels(consumer.name),
            "ownerReferences": [owner_reference(consumer)],
        },
    }


def _pod(consumer: Consumer, *, credentials_secret: str, runtime: Runtime) -> Manifest:
    template = consumer.template
    chosen = {
        "nodeSelector": dict(template.node_selector),
        "tolerations": list(template.tolerations),
        "affinity": dict(template.affinity),
        "priorityClassName": template.priority_class_name,
        "topologySpreadConstraints": list(template.topology_spread_constraints),
        "imagePullSecrets": [{"name": name} for name in runtime.image_pull_secrets],
    }
    return {
        "serviceAccountName": consumer.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": -(-consumer.drain_timeout // 1000) + GRACE_MARGIN_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(consumer, runtime)],
        "volumes": [
            _config_map_volume("entries", names.entries_config_map_name(consumer.name), ENTRIES_KEY),
            _config_map_volume("policy", names.policy_config_map_name(consumer.name), POLICY_KEY),
            {
                "name": "credentials",
                "secret": {
                    "secretName": credentials_secret,
                    "defaultMode": 0o440,
                    # Only what the runtime reads: the Secret may hold more than that.
                    "items": [{"key": key, "path": key} for key in ("username", "password")],
                },
            },
        ],
        **{key: value for key, value in chosen.items() if value},
    }


def _with_tls(pod: Manifest, tls: PodTls | None) -> Manifest:
    """Mount the files that the driver's entry names."""
    volume = pod_tls.volume(tls, "tls")
    if volume is None:
        return pod
    (container,) = pod["containers"]
    mount = {"name": "tls", "mountPath": pod_tls.PATH, "readOnly": True}
    mounted = {**container, "volumeMounts": [*container["volumeMounts"], mount]}
    return {**pod, "containers": [mounted], "volumes": [*pod["volumes"], volume]}


def _container(consumer: Consumer, runtime: Runtime) -> Manifest:
    container: Manifest = {
        "name": names.CONTAINER,
        "image": runtime.image,
        "imagePullPolicy": runtime.image_pull_policy,
        "args": [
            "run",
            f"{ENTRIES_PATH}/{ENTRIES_KEY}",
            "--policy",
            f"{POLICY_PATH}/{POLICY_KEY}",
            "--credentials-dir",
            CREDENTIALS_PATH,
            "--health-port",
            str(HEALTH_PORT),
        ],
        "ports": [{"name": "health", "containerPort": HEALTH_PORT, "protocol": "TCP"}],
        # A start may wait for a broker for minutes without being ill: that is readiness' matter.
        "startupProbe": _probe("/healthz", period=1, failures=60),
        "livenessProbe": _probe("/healthz", period=10, failures=3),
        "readinessProbe": _probe("/readyz", period=2, failures=2),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": name, "mountPath": path, "readOnly": True}
            for name, path in (
                ("entries", ENTRIES_PATH),
                ("policy", POLICY_PATH),
                ("credentials", CREDENTIALS_PATH),
            )
        ],
    }
    if consumer.template.resources:
        container["resources"] = dict(consumer.template.resources)
    if env := [*_telemetry(consumer, runtime), *_env(consumer)]:
        container["env"] = env
    return container


def _telemetry(consumer: Consumer, runtime: Runtime) -> list[Manifest]:
    if not runtime.otlp_endpoint:
        return []
    return [
        {"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": runtime.otlp_endpoint},
        {"name": "OTEL_SERVICE_NAME", "value": f"{consumer.namespace}/{consumer.name}"},
    ]


def _env(consumer: Consumer) -> list[Manifest]:
    """Return the values that only the kubelet can read; plain ones stand in the entries document."""
    env = []
    for variable in consumer.handler.env:
        if variable.value_from is None:
            continue
        for kind, ref in (
            ("secretKeyRef", variable.value_from.secret_key_ref),
            ("configMapKeyRef", variable.value_from.config_map_key_ref),
        ):
            if ref is not None:
                env.append({"name": variable.name, "valueFrom": {kind: {"name": ref.name, "key": ref.key}}})
    return env


def _probe(path: str, *, period: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": "health", "scheme": "HTTP"},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _config_map_volume(name: str, config_map: str, key: str) -> Manifest:
    return {
        "name": name,
        "configMap": {"name": config_map, "defaultMode": 0o444, "items": [{"key": key, "path": key}]},
    }
