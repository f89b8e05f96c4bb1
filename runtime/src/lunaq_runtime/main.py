"""The runtime's command line, and a pod's entry point: `lunaq-runtime run FILE`, `lunaq-runtime check FILE`.

Exit codes: 0 after a drain, 1 where the process cannot go on, 2 for a document that cannot be run.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lunaq_runtime import logs
from lunaq_runtime.entries.files import load
from lunaq_runtime.entries.parse import EntriesError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lunaq_runtime.entries.model import Document

EXIT_INVALID = 2
BROKER_URL_VARIABLE = "LUNAQ_BROKER_URL"

_DESCRIPTION = """\
Runs queue consumers written in Lua from one entries document.

A document in its shortest form, with its handler in worker.lua beside it:

  entries:
    - {id: broker, kind: queue.driver.memory}
    - {id: emails, kind: queue.queue}
    - {id: worker, kind: queue.consumer, queue: emails, method: handle_email}
    - {id: rights, kind: security.policy, consumer: worker, consume: [emails]}
"""
_RUN_EPILOG = """\
Rights come from the document's security.policy entries, or from --policy FILE, which wins and is read again
when it changes. What is not granted is denied.

examples:
  lunaq-runtime run app.yaml --allow-all --log-format console
  lunaq-runtime run app.yaml --broker-url amqp://guest:guest@localhost:5672/
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        document = load(options.file, os.environ if options.command == "run" else None)
        return _check(document) if options.command == "check" else _run(document, options)
    except EntriesError as error:
        # A command's own output: no logging has been set up where a document is not even valid.
        print(f"{options.file} cannot be run:", *error.errors, sep="\n  ", file=sys.stderr)  # noqa: T201 - see above
        return EXIT_INVALID


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("lunaq-runtime", description=_DESCRIPTION, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="say what is wrong with a document, without running it")
    run = commands.add_parser(
        "run", help="run a document until SIGTERM", epilog=_RUN_EPILOG, formatter_class=raw
    )
    for command in (check, run):
        command.add_argument("file", type=Path, metavar="FILE", help="the entries document, YAML or JSON")
    rights = run.add_mutually_exclusive_group()
    rights.add_argument("--policy", type=Path, metavar="FILE", help="security.policy entries; wins")
    rights.add_argument("--allow-all", action="store_true", help="deny nothing: for a laptop only")
    run.add_argument(
        "--broker-url",
        default=os.environ.get(BROKER_URL_VARIABLE),
        metavar="URL",
        help=f"use this AMQP broker instead of the document's drivers (also ${BROKER_URL_VARIABLE},"
        " which keeps a password out of the process list)",
    )
    run.add_argument(
        "--credentials-dir",
        type=Path,
        metavar="DIR",
        help="files username and password, read at each connect",
    )
    run.add_argument("--health-host", default="0.0.0.0", metavar="HOST", help="default: all addresses")  # noqa: S104 - a pod's probes come from outside
    run.add_argument(
        "--health-port", type=int, default=8080, metavar="PORT", help="/healthz, /readyz, /metrics; 0: any"
    )
    run.add_argument("--log-format", choices=logs.FORMATS, default="json")
    run.add_argument("--log-level", choices=logs.LEVELS, default="info")
    return parser


def _check(document: Document) -> int:
    from lunaq_runtime.lua.check import load_error  # noqa: PLC0415 - a Lua state is heavy, and errors come first

    found = {
        f"consumer {consumer.id}: {error}"
        for consumer in document.consumers.values()
        if (error := load_error(consumer.handler)) is not None
    }
    if found:
        raise EntriesError(sorted(found))
    for warning in document.warnings:
        print(f"warning: {warning}", file=sys.stderr)  # noqa: T201 - a command's own output
    print(f"ok: {len(document.consumers)} consumers, {len(document.queues)} queues")  # noqa: T201 - likewise
    return 0


def _run(document: Document, options: argparse.Namespace) -> int:
    logs.setup(options.log_format, options.log_level)
    from lunaq_runtime.serve import Settings, run  # noqa: PLC0415 - brings Lua and AMQP, slow to import

    code = run(
        document,
        Settings(
            policy_file=options.policy,
            allow_all=options.allow_all,
            broker_url=options.broker_url or "",
            credentials_dir=options.credentials_dir,
            health_host=options.health_host,
            health_port=options.health_port,
        ),
    )
    if code:
        # A thread that hangs in Lua must not hold up the end.
        logging.shutdown()
        os._exit(code)
    return code
