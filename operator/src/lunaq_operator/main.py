"""The operator's process: `lunaq-operator run` and `lunaq-operator release-finalizers`.

Arguments become `Settings`, signals become one stop event, and every way of ending that is not a clean
stop exits non-zero, so that the kubelet starts anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import click

from lunaq_operator import connections, health, kinds, kube, oplogs, release
from lunaq_operator.engine import Engine
from lunaq_operator.kube import Kube, KubeError
from lunaq_operator.settings import Settings
from lunaq_runtime import durations

if TYPE_CHECKING:
    from collections.abc import Coroutine

log = logging.getLogger(__name__)

_EXIT_PATIENCE = 3.0
"""Seconds between losing the lease and the end of the process; another may lead 4 s after we lost it."""


class _Duration(click.ParamType[float]):
    """A duration as everywhere in Lunaq, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return durations.to_seconds(durations.parse_duration(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION = _Duration()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Lunaq's operator: makes queues and deployments out of Brokers, Queues and Consumers.

    To run handlers without a cluster, see `lunaq run`.
    """


@main.command()
@click.option("--runtime-image", required=True, help="The image of Consumers' pods.")
@click.option(
    "--runtime-image-pull-policy",
    type=click.Choice(["IfNotPresent", "Always", "Never"]),
    default="IfNotPresent",
    show_default=True,
    help="When nodes pull it.",
)
@click.option(
    "--runtime-image-pull-secret",
    "pull_secrets",
    multiple=True,
    help="A Secret with which nodes pull it, in each Consumer's namespace. May be repeated.",
)
@click.option(
    "--otlp-endpoint",
    default="",
    metavar="URL",
    help="Where Consumers' pods send OpenTelemetry spans, by OTLP over HTTP. Default: nowhere.",
)
@click.option(
    "--cluster-id",
    default="",
    help="Who this cluster is on a broker that several share. Default: the UID of namespace kube-system.",
)
@click.option(
    "--namespace",
    "namespaces",
    multiple=True,
    help="Serve only this namespace. May be repeated. Default: all namespaces.",
)
@click.option(
    "--credentials-max-age",
    type=DURATION,
    default="0s",
    help="How old a Consumer's own broker user becomes before it gets another (720h). Default: no limit.",
)
@click.option("--lease-name", default="lunaq-operator", show_default=True, help="The Lease to lead by.")
@click.option("--lease-namespace", default="", help="Where the Lease is. Default: the pod's namespace.")
@click.option("--workers", default=8, show_default=True, help="How many objects are worked on at once.")
@click.option(
    "--health-port", default=8081, show_default=True, help="Port of /healthz and /readyz; 0 takes any."
)
@click.option("--kubeconfig", default="", help="Default: KUBECONFIG, the pod's ServiceAccount, ~/.kube.")
@click.option("--log-format", type=click.Choice(["json", "text"]), default="json", show_default=True)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
def run(**options: Any) -> None:
    """Watch the cluster and serve its Brokers, Queues and Consumers until SIGTERM.

    Exits with 1 when the lease is lost, the watching ends, or the start fails; the kubelet starts anew.
    """
    oplogs.configure(options["log_format"], options["log_level"])
    settings = Settings(
        runtime_image=options["runtime_image"],
        runtime_image_pull_policy=options["runtime_image_pull_policy"],
        runtime_image_pull_secrets=options["pull_secrets"],
        otlp_endpoint=options["otlp_endpoint"],
        cluster_id=options["cluster_id"],
        namespaces=tuple(sorted(set(options["namespaces"]))),
        lease_namespace=options["lease_namespace"] or _own_namespace(),
        lease_name=options["lease_name"],
        identity=f"{socket.gethostname()}_{secrets.token_hex(4)}",
        health_port=options["health_port"],
        credentials_max_age=options["credentials_max_age"],
        workers=options["workers"],
    )
    run_or_exit(serve(settings, options["kubeconfig"]))


@main.command("release-finalizers")
@click.option("--namespace", "namespaces", multiple=True, help="Only in this namespace. May be repeated.")
@click.option(
    "--lease-name",
    default="",
    help="Stop a running operator for five minutes first, by taking its Lease. Default: none runs.",
)
@click.option("--lease-namespace", default="", help="Where the Lease is. Default: the pod's namespace.")
@click.option("--kubeconfig", default="", help="Default: KUBECONFIG, the pod's ServiceAccount, ~/.kube.")
@click.option("--log-format", type=click.Choice(["json", "text"]), default="text", show_default=True)
def release_finalizers(
    namespaces: tuple[str, ...], lease_name: str, lease_namespace: str, kubeconfig: str, log_format: str
) -> None:
    """Take Lunaq's finalizers off all its objects, so that they can go without the operator.

    `helm uninstall` runs this. Run it by hand where the operator is gone and objects hang in deletion.
    What is on the brokers stays there. A running operator would put the finalizers back: name its Lease.
    """
    oplogs.configure(log_format, "info")
    lease = (lease_namespace or _own_namespace(), lease_name) if lease_name else None
    run_or_exit(release.release_finalizers(kubeconfig, namespaces, lease))


async def serve(settings: Settings, kubeconfig: str = "") -> None:
    """Run one operator until SIGTERM; raises whatever ends it otherwise."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def take_signals() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)

    take_signals()
    client = Kube(await kube.load(kubeconfig))
    try:
        settings = await _with_cluster_id(client, settings)
        engine = Engine(settings, client, connections.make_broker)
        runner = await health.serve(engine, settings.health_port, settings.silence_limit)
        log.info("Health answers at %s", ", ".join(str(address) for address in runner.addresses))
        try:
            await engine.run(stop, take_signals)
        finally:
            with contextlib.suppress(Exception):
                await runner.cleanup()
    finally:
        await client.close()


async def _with_cluster_id(client: Kube, settings: Settings) -> Settings:
    if settings.cluster_id:
        return settings
    try:
        namespace = await client.get(kinds.NAMESPACES, "", "kube-system")
    except KubeError as error:
        raise click.ClickException(f"set --cluster-id, its default cannot be read: {error}") from error
    if namespace is None:
        raise click.ClickException("set --cluster-id: there is no namespace kube-system to take it from")
    return settings.with_cluster_id(str(namespace["metadata"]["uid"]))


def run_or_exit(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end; what goes wrong is told in the log and by an exit status of 1."""
    try:
        asyncio.run(_bounded(work))
    except click.ClickException:
        raise
    except BaseExceptionGroup as group:
        for error in group.exceptions:
            log.error("Ending: %s", error, exc_info=error)  # noqa: TRY400 - one per error of the group
        sys.exit(1)
    except Exception:
        log.exception("Ending")
        sys.exit(1)


async def _bounded(work: Coroutine[Any, Any, None]) -> None:
    """Await `work`; once it failed, nothing may keep the process alive for long (a hung socket, say)."""
    try:
        await work
    except Exception:
        loop = asyncio.get_running_loop()
        loop.call_later(_EXIT_PATIENCE, os._exit, 1)
        raise


def _own_namespace() -> str:
    try:
        with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace", encoding="utf-8") as file:  # noqa: PTH123
            return file.read().strip()
    except OSError:
        return "default"


if __name__ == "__main__":
    main()
