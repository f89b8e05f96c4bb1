"""How the process logs: JSON lines for machines, or a line for people, on stderr; set up by `main`.

Loggers add fields by `extra`: any of `FIELDS` as an attribute, or more in a dict named `fields` (that is
what handlers log). Credentials in URIs are blotted out, whoever logged them.
"""

from __future__ import annotations

import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson

FIELDS = ("message_id", "queue", "consumer", "attempt", "error")
FORMATS = ("json", "console")
LEVELS = ("debug", "info", "warning", "error")

_CREDENTIALS = re.compile(r"://[^\s\"'<>]*@")
_CHATTY = ("aiohttp.access", "asyncio")
_REPEATED = ("aiormq",)
"""Loggers whose errors reach us as exceptions and are told by us, with what is done about them."""


def setup(log_format: str, level: str, stream: TextIO | None = None) -> None:
    """Send all logs to `stream` (stderr) in one of `FORMATS`, from one of `LEVELS` on."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else ConsoleFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _CHATTY:
        # What they say at info is what we say ourselves, with more of it.
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    for name in _REPEATED:
        logging.getLogger(name).setLevel(logging.DEBUG if level == "debug" else logging.CRITICAL)


def redact(text: str) -> str:
    """Blot out user and password of every URI in a text."""
    return _CREDENTIALS.sub("://***@", text)


class JsonFormatter(logging.Formatter):
    """One JSON object per line; times are RFC 3339 in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in _fields(record).items():
            entry[f"{name}_" if name in entry else name] = value
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        # A text with half a character must not cost the line.
        try:
            line = orjson.dumps(entry, default=_text, option=orjson.OPT_NON_STR_KEYS).decode()
        except TypeError:
            line = orjson.dumps({_text(name): _text(value) for name, value in entry.items()}).decode()
        return redact(line)


class ConsoleFormatter(logging.Formatter):
    """One line for people: time, level, text, and the fields as `name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        fields = "".join(f" {name}={_text(value)}" for name, value in _fields(record).items())
        line = f"{time} {record.levelname.lower():<7} {record.getMessage()}{fields}"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return redact(line)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    known = {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
    more = getattr(record, "fields", None)
    return {**more, **known} if isinstance(more, dict) else known


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value).encode("utf-8", "replace").decode()
