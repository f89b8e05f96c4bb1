"""Consumers, functions and libraries of an entries document (lua-api.md 2.2, 2.6); called by `parse`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from lunaq_runtime import durations, networks
from lunaq_runtime.entries.model import Consumer, Function, Handler

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lunaq_runtime.entries.parse_entry import Entry
    from lunaq_runtime.entries.parse_fields import Place
    from lunaq_runtime.ids import Id

_FILE = "file://"
_RESERVED_ENV = "LUNAQ_"
_DEFAULT_PREFETCH = 10


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What consumers refer to: other entries by ID, files by `read`, and the process' environment."""

    namespace: str
    queues: Mapping[Id, Entry]
    functions: Mapping[Id, Entry]
    libraries: Mapping[Id, Entry]
    read: Callable[[str], str]
    environ: Mapping[str, str] | None


def build_consumers(entries: list[Entry], around: Surroundings) -> dict[Id, Consumer]:
    """Build all consumers; errors are noted at the entries' places."""
    return {entry.id: consumer for entry in entries if (consumer := _consumer(entry, around)) is not None}


def check_sources(around: Surroundings) -> None:
    """Read the source of every function and library, so that mistakes in unused ones show as well."""
    for entry in (*around.functions.values(), *around.libraries.values()):
        if entry.values["source"] is not None:
            _source(entry, entry.values["source"], around)


def _consumer(entry: Entry, around: Surroundings) -> Consumer | None:
    values, place, lunaq = entry.values, entry.place, entry.values["lunaq"]
    queue: Id | None = values["queue"]
    if queue is not None and queue not in around.queues:
        known = ", ".join(sorted(map(str, around.queues))) or "none"
        place.error("queue", f"{queue} is not a queue of this document: it has {known}")
    handler = _handler(entry, around)
    if queue is None or handler is None:
        return None
    amqp = values["driver_options"]["amqp"]
    drain = lunaq["drainTimeout"] or values["lifecycle"]["stop_timeout"]
    consumer = Consumer(
        id=entry.id,
        queue=queue,
        handler=handler,
        concurrency=max(1, values["concurrency"]),
        prefetch=values["prefetch"] if values["prefetch"] > 0 else _DEFAULT_PREFETCH,
        auto_ack=values["auto_ack"],
        false_is_failure=lunaq["falseIsFailure"],
        exclusive=amqp["exclusive"],
        consumer_tag=amqp["consumer_tag"],
        drain_timeout=durations.to_seconds(drain) if drain else 40.0,
    )
    if consumer.auto_ack:
        place.warn("auto_ack", "messages are lost when the process ends or a handler fails")
    if consumer.concurrency > consumer.prefetch:
        surplus = consumer.concurrency - consumer.prefetch
        place.warn("prefetch", f"is below concurrency, so that {surplus} handlers never work: raise it")
    return consumer


def _handler(entry: Entry, around: Surroundings) -> Handler | None:
    values, lunaq = entry.values, entry.values["lunaq"]
    function = _function(entry, around)
    if function is None:
        return None
    found = _source_of(entry, function, around)
    imports = _imports(function, around)
    env = _env(entry, around)
    if found is None:
        return None
    return Handler(
        chunk_name=found[0],
        source=found[1],
        method=values["method"] or function.values["method"],
        modules=function.values["modules"],
        imports=imports,
        functions=_functions(function.values["modules"], around),
        env=env,
        private_ranges=_ranges(entry),
        timeout=durations.to_seconds(lunaq["timeout"]),
        memory_limit=lunaq["memoryLimit"],
    )


def _ranges(entry: Entry) -> tuple[str, ...]:
    field = "lunaq.httpClient.privateRanges"
    ranges = tuple(entry.values["lunaq"]["httpClient"]["privateRanges"])
    for text in ranges:
        try:
            networks.check_private_range(text)
        except ValueError as error:
            entry.place.error(field, str(error))
    return ranges


def _functions(modules: tuple[str, ...] | None, around: Surroundings) -> dict[str, Function]:
    """Collect what `funcs` may call: all of the document, a library with the handler's `modules`."""
    found: dict[str, Function] = {}
    for entry in (*around.functions.values(), *around.libraries.values()):
        source: str | None = entry.values["source"]
        chunk = None if source is None else _source(entry, source, around)
        if chunk is not None:
            is_function = entry.id in around.functions
            found[str(entry.id)] = Function(
                *chunk,
                method=entry.values["method"] if is_function else "",
                modules=entry.values["modules"] if is_function else modules,
                imports={name: other for name, other in _imports(entry, around).items() if other != chunk},
            )
    return found


def _function(entry: Entry, around: Surroundings) -> Entry | None:
    """Find the entry that has the handler's source: a function, or the consumer itself."""
    wanted: Id | None = entry.values["func"]
    if wanted is None:
        return None if entry.raw.get("func") is not None else entry
    for name in ("source", "modules", "imports"):
        if entry.raw.get(name) is not None:
            entry.place.error(name, f"belongs to {wanted}, which `func` names: move it there")
    if wanted not in around.functions:
        known = ", ".join(sorted(map(str, around.functions))) or "none"
        entry.place.error("func", f"{wanted} is not a function.lua of this document: it has {known}")
    return around.functions.get(wanted)


def _source_of(entry: Entry, function: Entry, around: Surroundings) -> tuple[str, str] | None:
    source: str | None = function.values["source"]
    if source is not None:
        return _source(function, source, around)
    if function is not entry:
        return None
    path = f"{entry.id.name}.lua"
    if _is_inside(path):
        try:
            return path, around.read(path)
        except OSError:
            pass
    text = f"function ID is required: write func, or source, or put the handler into {path} beside this file"
    entry.place.error("func", text)
    return None


def _source(entry: Entry, source: str, around: Surroundings) -> tuple[str, str] | None:
    """Return chunk name and text of an inline source or a file's."""
    if not source.startswith(_FILE):
        if not source.strip():
            entry.place.error("source", "is empty: write the Lua text, or file://handler.lua")
        return str(entry.id), source
    path = source.removeprefix(_FILE)
    if not _is_inside(path):
        entry.place.error("source", f"{path!r} must be a path below this file's folder, such as file://a.lua")
        return None
    try:
        return path, around.read(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        entry.place.error("source", f"file {path} cannot be read: {reason}")
        return None


def _is_inside(path: str) -> bool:
    parts = PurePosixPath(path)
    return bool(parts.name) and not parts.is_absolute() and ".." not in parts.parts


def _imports(function: Entry, around: Surroundings) -> dict[str, tuple[str, str]]:
    """Collect libraries by local name, with what they import themselves under names still free."""
    granted: dict[str, Id] | None = function.values["imports"]
    if granted is None:
        granted = {one.name: one for one in around.libraries if one.namespace == around.namespace}
    pending = [(function.place, name, library) for name, library in granted.items()]
    result: dict[str, tuple[str, str]] = {}
    taken: dict[str, Id] = {}
    for place, name, library in pending:
        if name in taken:
            if taken[name] != library:
                place.warn(f"imports.{name}", f"is {taken[name]} for the whole handler, not {library}")
            continue
        taken[name] = library
        target = around.libraries.get(library)
        if target is None:
            known = ", ".join(sorted(map(str, around.libraries))) or "none"
            place.error(f"imports.{name}", f"{library} is not a library.lua of this document: it has {known}")
            continue
        source: str | None = target.values["source"]
        found = None if source is None else _source(target, source, around)
        if found is not None:
            result[name] = found
        inner: dict[str, Id] = target.values["imports"] or {}
        pending.extend((target.place, inner_name, other) for inner_name, other in inner.items())
    return result


def _env(entry: Entry, around: Surroundings) -> dict[str, str]:
    lunaq, place = entry.values["lunaq"], entry.place
    env: dict[str, str] = {}
    for name in lunaq["envFrom"] or ():
        _check_env_name(name, "lunaq.envFrom", place)
        if around.environ is None:
            continue
        if name in around.environ:
            env[name] = around.environ[name]
        else:
            place.warn("lunaq.envFrom", f"the environment has no variable {name}: env.get will not find it")
    for name, value in (lunaq["env"] or {}).items():
        _check_env_name(name, "lunaq.env", place)
        env[name] = value
    return env | _own_env(entry)


def _check_env_name(name: str, path: str, place: Place) -> None:
    if name.startswith(_RESERVED_ENV):
        place.error(path, f"{name} begins with {_RESERVED_ENV}, which is kept for the runtime: rename it")


def _own_env(entry: Entry) -> dict[str, Any]:
    return {
        "LUNAQ_NAMESPACE": entry.id.namespace,
        "LUNAQ_CONSUMER": str(entry.id),
        "LUNAQ_QUEUE": str(entry.values["queue"]),
    }
