"""The `lunaq` command, for people; each command's work is done by the modules it names.

Heavy imports (Lua, AMQP) are made when a command needs them, so that help and mistakes come at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lunaq_runtime import logs
from lunaq_runtime.ids import Id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lunaq_operator.local import LocalRun, Plan

EXIT_FAILED = 1
EXIT_INVALID = 2
BROKER_VARIABLE = "LUNAQ_BROKER_URL"

_FILES = click.argument(
    "files", nargs=-1, required=True, metavar="FILE...", type=click.Path(exists=True, path_type=Path)
)
_NAMESPACE = click.option(
    "--namespace", "-n", default="app", show_default=True, help="Where objects are that name no namespace."
)
_ALLOW_ALL = click.option(
    "--allow-all", is_flag=True, help="Deny nothing, whatever RBAC says. For a laptop only."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="lunaq-operator")
def main() -> None:
    """Run queue consumers written in Lua, and look after their queues.

    \b
    Start here, with no cluster and no broker:
      lunaq run examples/emails
    """  # noqa: D301 - \b is click's mark for "do not wrap"


@main.command()
@_FILES
@click.option(
    "--broker",
    metavar="URL",
    envvar=BROKER_VARIABLE,
    show_envvar=True,
    help="Use this AMQP broker (amqp://user:password@host:port/vhost) instead of memory. The variable keeps "
    "the password out of the process list.",
)
@_ALLOW_ALL
@_NAMESPACE
@click.option(
    "--publish",
    "-p",
    "messages",
    multiple=True,
    metavar="QUEUE=JSON",
    help="Publish a message once all consumers are ready; may be given several times.",
)
@click.option("--log-level", type=click.Choice(logs.LEVELS), default="info", show_default=True)
def run(
    files: tuple[Path, ...],
    broker: str | None,
    namespace: str,
    messages: tuple[str, ...],
    log_level: str,
    *,
    allow_all: bool,
) -> None:
    """Run resources or an entries document here, without a cluster.

    FILE is a YAML or JSON file, or a folder of them: Brokers, Queues and Consumers as for `kubectl apply`,
    with their Roles and RoleBindings, which are the permissions here as in a cluster. The queues are in
    memory and gone at the end, unless --broker names a real one. Or FILE is one entries document, as the
    runtime image runs it.

    \b
    Examples:
      lunaq run examples/emails
      lunaq run app.yaml rbac.yaml --publish emails='{"to": "ada@example.com"}'
      lunaq run app.yaml --broker amqp://guest:guest@localhost:5672/
      lunaq run handler-only.yaml --allow-all

    Ctrl-C stops taking messages, lets running handlers finish, and ends. Exit codes: 0 after that, 1 where
    a consumer or the broker failed, 2 where the files cannot be run.
    """  # noqa: D301 - as above
    logs.setup("console", log_level)
    parsed = [_message(text, namespace) for text in messages]
    plan = _plan(files, namespace, allow_all=allow_all)
    _tell_notes(plan)
    unknown = [str(queue) for queue, _ in parsed if queue not in plan.queues]
    if unknown:
        _refuse([f"--publish: there is no Queue {name} in the given files" for name in unknown])
    from lunaq_runtime.brokers.base import BrokerError  # noqa: PLC0415 - see the module's docstring

    try:
        asyncio.run(_run(plan, broker or "", parsed))
    except BrokerError as error:
        click.echo(f"lunaq: the broker refused: {logs.redact(str(error))}", err=True)
        sys.exit(EXIT_FAILED)


@main.command()
@_FILES
@_ALLOW_ALL
@_NAMESPACE
def check(files: tuple[Path, ...], namespace: str, *, allow_all: bool) -> None:
    """Say what is wrong with files before they are applied.

    Looks at every field, follows references among the files, compiles the Lua, and tells which Consumers
    may not consume and which literal `queue.publish("app:audit", ...)` RBAC would deny. Objects that only
    the cluster has are not known here: give all files of an application together.

    \b
    Examples:
      lunaq check examples/emails
      helm template ./chart > all.yaml && lunaq check all.yaml

    Exit codes: 0 where the files can be run (notes may still be printed), 2 where they cannot.
    """  # noqa: D301 - as above
    from lunaq_operator.local import plan as planning  # noqa: PLC0415 - see the module's docstring

    plan = _plan(files, namespace, allow_all=allow_all)
    _tell_notes(plan)
    for note in planning.denied_publishes(plan):
        click.echo(f"note: {note}", err=True)
    consumers = sum(len(document.consumers) for document in plan.documents)
    click.echo(f"ok: {len(plan.queues)} queues, {consumers} consumers")


@main.command("explain-permissions")
@click.argument("consumer")
@click.option(
    "--file",
    "-f",
    "files",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="Explain by the objects in this file or folder; may be given several times. Default: the cluster's.",
)
@_NAMESPACE
@click.option("--kubeconfig", default="", help="Which cluster. Default: KUBECONFIG, then ~/.kube/config.")
def explain_permissions(consumer: str, files: tuple[Path, ...], namespace: str, kubeconfig: str) -> None:
    """Show what a Consumer may consume from and publish to, what grants it, and what it lacks.

    Each right comes with its binding and role. What its queue and the literal `queue.publish("app:audit",
    ...)` of its inline code need and RBAC does not grant comes with a command that grants it.

    \b
    Examples:
      lunaq explain-permissions email-worker -n app
      lunaq explain-permissions email-worker -f examples/emails

    Exit codes: 0 where nothing is missing, 1 where something is, 2 where it cannot be told.
    """  # noqa: D301 - as above
    from lunaq_operator.local import LocalError, permissions  # noqa: PLC0415 - see the module's docstring
    from lunaq_operator.local import files as reading  # noqa: PLC0415 - likewise

    try:
        if files:
            found = permissions.from_files(reading.read(files), namespace, consumer)
        else:
            found = asyncio.run(permissions.from_cluster(kubeconfig, namespace, consumer))
    except LocalError as error:
        _refuse(error.problems)
        raise
    if found.note:
        click.echo(f"note: {found.note}", err=True)
    click.echo(found.text)
    sys.exit(0 if found.complete else EXIT_FAILED)


def _plan(files: Sequence[Path], namespace: str, *, allow_all: bool) -> Plan:
    """Read and plan, or tell every mistake and exit."""
    from lunaq_operator.local import LocalError  # noqa: PLC0415 - see the module's docstring
    from lunaq_operator.local import files as reading  # noqa: PLC0415 - likewise
    from lunaq_operator.local import plan as planning  # noqa: PLC0415 - likewise

    try:
        found = reading.read(files)
        entries = [one for one in found if planning.is_entries(one)]
        if not entries:
            return planning.plan_resources(found, namespace, os.environ, allow_all=allow_all)
        if len(found) > 1:
            raise LocalError(  # noqa: TRY301 - told like every other mistake
                [f"{one.where}: an entries document runs alone, without other files" for one in entries]
            )
        return planning.plan_entries(entries[0], os.environ, allow_all=allow_all)
    except LocalError as error:
        _refuse(error.problems)
        raise


def _message(text: str, namespace: str) -> tuple[Id, Any]:
    """Read `QUEUE=JSON`; the queue's namespace is by default the given one."""
    queue, equals, body = text.partition("=")
    try:
        if not (queue and equals):
            raise ValueError("there is no '='")  # noqa: TRY301 - told with the same hint
        return Id.parse(queue, namespace), json.loads(body)
    except ValueError as error:
        raise click.BadParameter(
            f'{text!r}: {error}; write a queue and JSON, such as emails=\'{{"to": "ada@example.com"}}\'',
            param_hint="--publish",
        ) from None


async def _run(plan: Plan, broker: str, messages: list[tuple[Id, Any]]) -> None:
    from lunaq_operator.local import LocalRun  # noqa: PLC0415 - see the module's docstring

    local = LocalRun(plan, broker)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    await local.start()
    failed = asyncio.create_task(local.wait_failed())
    end = asyncio.create_task(ended.wait())
    publishing = asyncio.create_task(_publish(local, messages))
    try:
        await asyncio.wait({failed, end, publishing}, return_when=asyncio.FIRST_COMPLETED)
        if publishing.done():
            publishing.result()
            await asyncio.wait({failed, end}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (publishing, end):
            task.cancel()
        await local.stop()
    if failed.done():
        click.echo(f"lunaq: {failed.result()}", err=True)
        sys.exit(EXIT_FAILED)
    failed.cancel()


async def _publish(local: LocalRun, messages: list[tuple[Id, Any]]) -> None:
    await local.until_ready()
    for queue, value in messages:
        message_id = await local.publish(queue, value)
        click.echo(f"published {message_id} to {queue}", err=True)


def _tell_notes(plan: Plan) -> None:
    for note in plan.notes:
        click.echo(f"note: {note}", err=True)


def _refuse(problems: Sequence[str]) -> None:
    for problem in problems:
        click.echo(f"error: {problem}", err=True)
    sys.exit(EXIT_INVALID)


if __name__ == "__main__":
    main()
