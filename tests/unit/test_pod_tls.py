"""What pods get of a Broker's TLS: the authorities always, the operator's login only where it is theirs."""

from typing import Any

import pytest

from lunaq_operator import pod_tls, render
from lunaq_operator.pod_tls import PodTls
from lunaq_operator.resources import SpecError, parse_broker, parse_consumer

CA = {"caSecretRef": {"name": "authorities", "key": "root.pem"}}
CLIENT = {"clientCertificateSecretRef": {"name": "client"}}
MANAGEMENT = {"management": {"uri": "https://mq:15671"}}


def broker(tls: dict[str, Any] | None, **spec: Any):
    spec = {"uri": "amqps://mq/v", "credentialsSecretRef": {"name": "login"}} | spec
    if tls is not None:
        spec["tls"] = tls
    metadata = {"name": "mq", "namespace": "app", "uid": "u"}
    return parse_broker(
        {"apiVersion": "lunaq.dev/v1alpha1", "kind": "Broker", "metadata": metadata, "spec": spec}
    )


def deployment(tls: PodTls | None) -> dict[str, Any]:
    worker = parse_consumer(
        {
            "apiVersion": "lunaq.dev/v1alpha1",
            "kind": "Consumer",
            "metadata": {"name": "worker", "namespace": "app", "uid": "u-1"},
            "spec": {"queueRef": {"name": "emails"}, "handler": {"source": "return 1"}},
        }
    )
    runtime = render.Runtime(image="lunaq/runtime:1")
    pod: dict[str, Any] = render.deployment(
        worker, entries="", credentials_secret="login", runtime=runtime, replicas=1, tls=tls
    )["spec"]["template"]["spec"]
    return pod


def test_a_broker_without_tls_changes_nothing():
    assert pod_tls.pod_tls(broker(None), "app") is None
    assert pod_tls.driver_fields(None) == {}
    assert [volume["name"] for volume in deployment(None)["volumes"]] == ["entries", "policy", "credentials"]


def test_everything_reaches_the_driver_as_files():
    tls = pod_tls.pod_tls(broker(CA | CLIENT | {"serverName": "mq.example"}), "app")
    assert pod_tls.driver_fields(tls) == {
        "auth_mechanism": "EXTERNAL",
        "tls": {
            "enabled": True,
            "server_name": "mq.example",
            "ca_file": "/etc/lunaq/tls/ca.crt",
            "cert_file": "/etc/lunaq/tls/tls.crt",
            "key_file": "/etc/lunaq/tls/tls.key",
        },
    }


def test_the_files_are_mounted_from_the_secrets_and_nothing_else_of_them():
    pod = deployment(PodTls("", "authorities", "root.pem", "client"))
    assert pod["volumes"][-1] == {
        "name": "tls",
        "projected": {
            "defaultMode": 0o440,
            "sources": [
                {"secret": {"name": "authorities", "items": [{"key": "root.pem", "path": "ca.crt"}]}},
                {
                    "secret": {
                        "name": "client",
                        "items": [
                            {"key": "tls.crt", "path": "tls.crt"},
                            {"key": "tls.key", "path": "tls.key"},
                        ],
                    }
                },
            ],
        },
    }
    mounts = pod["containers"][0]["volumeMounts"]
    assert mounts[-1] == {"name": "tls", "mountPath": "/etc/lunaq/tls", "readOnly": True}
    assert len(mounts) == 4


def test_a_server_name_alone_needs_no_volume():
    tls = pod_tls.pod_tls(broker({"serverName": "mq.example"}), "elsewhere")
    assert pod_tls.driver_fields(tls) == {"tls": {"enabled": True, "server_name": "mq.example"}}
    assert pod_tls.volume(tls, "tls") is None


@pytest.mark.parametrize(
    "spec",
    [MANAGEMENT, {"runtimeCredentialsSecretRef": {"name": "less"}}],
    ids=["a user of its own", "credentials for pods"],
)
def test_the_operators_certificate_is_kept_from_pods_that_log_in_as_somebody_else(spec: dict[str, Any]):
    tls = pod_tls.pod_tls(broker(CA | CLIENT, **spec), "app")
    assert tls == PodTls("", "authorities", "root.pem")
    fields = pod_tls.driver_fields(tls)
    assert "auth_mechanism" not in fields
    assert set(fields["tls"]) == {"enabled", "ca_file"}


def test_a_consumer_of_another_namespace_is_told_that_it_cannot_mount_the_authorities():
    shared = broker(CA, **MANAGEMENT, allowedNamespaces={"from": "All"})
    with pytest.raises(SpecError, match=r"pods of namespace other cannot mount; create .* in namespace app"):
        pod_tls.pod_tls(shared, "other")
