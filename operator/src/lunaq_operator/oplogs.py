"""The operator's log: the runtime's, under the chart's names of formats, with less of kopf; for `main`."""

from __future__ import annotations

import logging

from lunaq_runtime import logs

_FORMATS = {"json": "json", "text": "console"}


def configure(log_format: str, level: str) -> None:
    """Send all logs to stderr; `log_format` is `json` or `text`."""
    logs.setup(_FORMATS[log_format], level)
    if level != "debug":
        # kopf tells of every event and login; what matters of it is told as a warning.
        logging.getLogger("kopf").setLevel(logging.WARNING)
