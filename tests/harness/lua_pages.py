"""Reads the pages of docs/lua and runs their examples, as handlers, on the memory broker.

Called by `tests/unit/test_docs_lua.py`. The convention of the pages is told in docs/lua/README.md.
"""

from __future__ import annotations

import json
import re
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from aiohttp import web

from harness.waiting import eventually
from lunaq_runtime.app import App
from lunaq_runtime.brokers.memory import MemoryBroker
from lunaq_runtime.entries.parse import parse
from lunaq_runtime.ids import Id
from lunaq_runtime.lua.state import DEFAULT_MODULES
from lunaq_runtime.message import Outgoing, Properties
from lunaq_runtime.policy_source import PolicySource

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

PAGES = Path(__file__).parents[2] / "docs" / "lua"

SETTINGS = frozenset(
    {"body", "content_type", "headers", "outcome", "error", "consumer", "policy", "entries", "server"}
)
FIELDS = ("syntax", "context", "returns", "errors", "example", "since")
_CONTEXTS = frozenset({"load", "handler"})
_BLOCK = re.compile(
    r"^<!-- lua\n(?P<settings>.*?)^-->|^```lua\n(?P<source>.*?)^```", re.MULTILINE | re.DOTALL
)
_ENTRY = re.compile(r"^### (?P<names>.+)$", re.MULTILINE)
_FIELD = re.compile(r"^\*\*(\w+):\*\*[ \t]*(.*)$", re.MULTILINE)
_WHOLE = re.compile(r"^(function\s|return\s+function|return\s*\{)", re.MULTILINE)
_CONSUMER = Id("app", "example")


@dataclass(frozen=True)
class Example:
    """One fenced block, with the settings that hold for it; `line` is where its source begins."""

    page: str
    line: int
    source: str
    settings: dict[str, Any]

    @property
    def place(self) -> str:
        return f"docs/lua/{self.page}:{self.line}"


@dataclass(frozen=True)
class Entry:
    """One heading of the third level: functions that belong together, and the fields of their form."""

    page: str
    names: tuple[str, ...]
    fields: dict[str, str] = field(default_factory=dict)
    has_example: bool = False

    def mistakes(self) -> Iterator[str]:
        """Tell what the form (README.md) asks for and this entry lacks."""
        if tuple(self.fields) != FIELDS:
            yield f"has the fields {', '.join(self.fields) or 'none'}, not {', '.join(FIELDS)}"
        contexts = set(re.split(r",\s*", self.fields.get("context", "")))
        if not contexts <= _CONTEXTS:
            yield f"has a context other than {', '.join(sorted(_CONTEXTS))}"
        syntax = self.fields.get("syntax", "")
        missing = [name for name in self.names if re.split(r"[.:]", name)[-1] not in syntax]
        if missing:
            yield f"has no syntax for {', '.join(missing)}"
        if not self.has_example:
            yield "has no ```lua example"


def pages() -> list[Path]:
    """List the pages of modules."""
    return sorted(path for path in PAGES.glob("*.md") if path.name != "README.md")


def entries(path: Path) -> list[Entry]:
    """Read a page's entries."""
    text = path.read_text()
    found = list(_ENTRY.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    result = []
    for match, end in zip(found, ends, strict=False):
        section = text[match.end() : end].split("\n## ", 1)[0]
        names = tuple(name.strip("` ") for name in match["names"].split(","))
        values = {name: value.strip() for name, value in _FIELD.findall(section)}
        result.append(Entry(path.name, names, values, "```lua\n" in section))
    return result


def examples(path: Path) -> list[Example]:
    """Read a page's examples; settings above the first heading of the second level are the page's."""
    text = path.read_text()
    first_section = text.find("\n## ")
    common: dict[str, Any] = {}
    own: dict[str, Any] = {}
    result = []
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 2
        if match["settings"] is not None:
            given = yaml.safe_load(match["settings"])
            assert isinstance(given, dict), f"docs/lua/{path.name}:{line}: settings are a YAML object"
            assert set(given) <= SETTINGS, f"docs/lua/{path.name}:{line}: settings are {sorted(SETTINGS)}"
            assert given.get("outcome") != "dead" or given.get("error"), f"docs/lua/{path.name}:{line}: why?"
            if match.start() < first_section:
                common = given
            else:
                own = given
        else:
            result.append(Example(path.name, line, match["source"], common | own))
            own = {}
    return result


class Running:
    """One example at work, in a document, an App and a memory broker of its own."""

    def __init__(self, example: Example, server_url: str) -> None:
        self.example = example
        settings = example.settings
        if settings.get("server"):
            lunaq = {"env": {"API_URL": server_url}, "httpClient": {"privateRanges": ["127.0.0.0/8"]}}
            settings = {
                "consumer": {"modules": [*DEFAULT_MODULES, "http_client"], "lunaq": lunaq},
                **settings,
            }
        source = (
            example.source
            if _WHOLE.search(example.source)
            else f"function handle(body) {example.source}\nend"
        )
        consumer = {"kind": "queue.consumer", "name": "example", "queue": "work", "source": source}
        policy = {"kind": "security.policy", "name": "example", "consumer": "example", "consume": ["*:*"]}
        granted = {"publish": True, "publishTo": ["app:*"]} | settings.get("policy", {})
        document = parse(
            {
                "entries": [
                    {"kind": "queue.driver.memory", "name": "memory"},
                    {
                        "kind": "queue.queue",
                        "name": "work",
                        "lunaq": {"retry": {"maxAttempts": 1, "delays": ["1ms"]}},
                    },
                    {"kind": "queue.queue", "name": "sent"},
                    consumer | settings.get("consumer", {}),
                    policy | granted,
                    *settings.get("entries", []),
                ]
            }
        )
        self.warnings = document.warnings
        self._broker = MemoryBroker()
        self._app = App(document, {Id("app", "memory"): self._broker}, PolicySource(document.policies))

    async def start(self) -> None:
        await self._app.start()

    async def ready(self) -> bool:
        return bool(self._app.ready or self._app.broken)

    async def send(self) -> None:
        """Publish the example's one message, as a foreign publisher does."""
        settings = self.example.settings
        if self._app.broken:
            return
        body = settings.get("body", {"n": 1})
        await self._broker.publish(
            Outgoing(
                "work.x",
                "",
                body.encode() if isinstance(body, str) else json.dumps(body).encode(),
                Properties(
                    message_id="message-1",
                    content_type=settings.get("content_type", "application/json"),
                    headers=settings.get("headers", {}),
                ),
            )
        )

    async def over(self) -> bool:
        counters = self._app.counters.get(_CONSUMER)
        return counters is None or counters.acked + counters.dead + counters.retried > 0

    def failure(self) -> str | None:
        """Tell how the outcome differs from the one the page promises, with the place in the page."""
        if self._app.broken:
            return f"{self.example.place}: {self._app.broken[_CONSUMER]}"
        dead = self._broker.messages("work.dead")
        wanted, text = self.example.settings.get("outcome", "acked"), self.example.settings.get("error", "")
        error = str(dead[0][1].headers.get("x_error", "")) if dead else ""
        if (wanted == "dead") == bool(dead) and text in error:
            return None
        return f"{self.example.place}: {'dead' if dead else 'acked'}, not {wanted} {text!r}: {error}"

    async def stop(self) -> None:
        await self._app.drain()


@asynccontextmanager
async def echo_server() -> AsyncIterator[str]:
    """Serve, on loopback, what examples with the setting `server` call: it answers with what it was sent."""

    async def echo(request: web.Request) -> web.Response:
        seen = {"method": request.method, "path": request.path_qs, "body": await request.text()}
        return web.json_response(seen)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", echo)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def run_all(page: Path) -> list[str]:
    """Run a page's examples side by side; list what went wrong."""
    async with AsyncExitStack() as stack:
        listed = examples(page)
        served = any(example.settings.get("server") for example in listed)
        url = await stack.enter_async_context(echo_server()) if served else ""
        return await _run([Running(example, url) for example in listed])


async def _run(running: list[Running]) -> list[str]:
    try:
        for one in running:
            await one.start()
        for one in running:
            await eventually(one.ready, f"{one.example.place} to load", timeout=60)
        for one in running:
            await one.send()
        for one in running:
            await eventually(one.over, f"{one.example.place} to end", timeout=60)
        return [failure for one in running if (failure := one.failure())]
    finally:
        for one in running:
            await one.stop()
