"""The node that the other tests stand on does what they take for granted."""

import json
from typing import Any

import aio_pika
import pytest

from harness.broker_pod import BrokerPod
from harness.pod_cluster import PodCluster
from harness.processes import accepts
from harness.waiting import wait_for


def python_pod(node: PodCluster, namespace: str, name: str, code: str) -> dict[str, Any]:
    """Run Python code in our runtime image, under what the operator demands of a pod."""
    container = {
        "name": "main",
        "image": node.images.runtime,
        "imagePullPolicy": node.images.pull_policy,
        "command": ["/opt/lunaq/bin/python", "-c", code],
        "securityContext": {
            "runAsNonRoot": True,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    spec = {"containers": [container], "restartPolicy": "Never", "terminationGracePeriodSeconds": 1}
    metadata = {"name": name, "namespace": namespace, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def output_of(node: PodCluster, namespace: str, name: str) -> str:
    """Wait until a pod has ended, and give what it printed; its failure is ours."""

    def phase() -> str | None:
        found = node.get("pod", name, "-n", namespace)["status"].get("phase")
        return found if found in {"Succeeded", "Failed"} else None

    ended = wait_for(phase, f"pod {name} to end", timeout=90)
    text = node.kubectl("logs", name, "-n", namespace).stdout
    assert ended == "Succeeded", text
    return text


def test_a_pod_of_the_runtime_image_runs_without_root_or_a_writable_disk(
    node: PodCluster, node_namespace: str
) -> None:
    code = "import os, lupa.lua54, lunaq_runtime; print(os.getuid(), lunaq_runtime.__file__)"
    node.apply(python_pod(node, node_namespace, "who", code))
    uid, path = output_of(node, node_namespace, "who").split()
    assert uid == "65532"
    assert path.startswith("/opt/lunaq/lib/")


def test_the_runtime_image_carries_no_kubernetes_client_no_operator_and_no_pip(
    node: PodCluster, node_namespace: str
) -> None:
    names = ("kubernetes", "kopf", "lunaq_operator", "pip")
    code = (
        "import importlib.util, json;"
        f"print(json.dumps([name for name in {names!r} if importlib.util.find_spec(name)]))"
    )
    node.apply(python_pod(node, node_namespace, "imports", code))
    assert json.loads(output_of(node, node_namespace, "imports")) == []


def test_the_operator_image_carries_both_packages(node: PodCluster, node_namespace: str) -> None:
    pod = python_pod(
        node, node_namespace, "operator", "import kopf, kubernetes, lunaq_operator, lunaq_runtime"
    )
    pod["spec"]["containers"][0]["image"] = node.images.operator
    node.apply(pod)
    output_of(node, node_namespace, "operator")


def test_pods_find_each_other_by_the_name_of_a_service(node: PodCluster, node_namespace: str) -> None:
    serve = (
        "import http.server;"
        "http.server.HTTPServer(('', 8080), http.server.BaseHTTPRequestHandler).serve_forever()"
    )
    ask = (
        "import urllib.request, urllib.error\n"
        "try: urllib.request.urlopen('http://web:8080', timeout=20)\n"
        "except urllib.error.HTTPError as error: print(error.code)\n"
    )
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": node_namespace},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 8080}]},
    }
    node.apply([service, python_pod(node, node_namespace, "web", serve)])
    node.wait_ready(node_namespace, "pod/web")
    # Ready is the pod; that kube-proxy has heard of it, this process can see.
    with node.forward(node_namespace, "web", 8080) as (host, port):
        wait_for(lambda: accepts(host, port), "Service web to accept connections")
    node.apply(python_pod(node, node_namespace, "asker", ask))
    assert output_of(node, node_namespace, "asker").strip() == "501"


def test_helm_and_kubectl_talk_to_the_same_cluster(node: PodCluster, node_namespace: str) -> None:
    assert json.loads(node.helm("list", "-n", node_namespace, "-o", "json").stdout) == []
    assert node.get("namespace", node_namespace)["status"]["phase"] == "Active"


async def publish(uri: str, body: bytes) -> None:
    async with await aio_pika.connect(uri) as connection, connection.channel() as channel:
        await channel.declare_queue("letters", durable=True)
        message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, routing_key="letters")


async def get(uri: str) -> bytes:
    async with await aio_pika.connect(uri) as connection, connection.channel() as channel:
        message = await (await channel.declare_queue("letters", passive=True)).get(timeout=10)
        await message.ack()
        return message.body


def test_a_pod_reaches_the_broker_by_its_cluster_uri(
    node: PodCluster, node_namespace: str, broker_pod: BrokerPod
) -> None:
    code = (
        "import asyncio, aiormq\n"
        "async def main():\n"
        f"    connection = await aiormq.connect({broker_pod.cluster_uri()!r})\n"
        "    print('connected')\n"
        "    await connection.close()\n"
        "asyncio.run(main())\n"
    )
    node.apply(python_pod(node, node_namespace, "client", code))
    assert output_of(node, node_namespace, "client").strip() == "connected"


@pytest.mark.parametrize("how", ["restart", "restart_container", "kill"])
async def test_a_message_outlives_the_brokers(broker_pod: BrokerPod, how: str) -> None:
    vhost = broker_pod.new_vhost()
    await publish(broker_pod.uri(vhost), how.encode())
    # What was declared is not on disk at once, and gone where RabbitMQ 3.10 is killed before (seen once).
    broker_pod.ctl("eval", "mnesia:sync_log().")
    getattr(broker_pod, how)()
    assert await get(broker_pod.uri(vhost)) == how.encode()
    broker_pod.delete_vhost(vhost)
