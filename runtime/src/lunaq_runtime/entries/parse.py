"""Reads and validates an entries document; called by `main`, the operator's compiler checks and the tests.

Pure: files come through `read`, the environment through `environ`. All mistakes are collected and told at
once, each with its place and its fix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from lunaq_runtime.entries.model import Document
from lunaq_runtime.entries.parse_consumers import Surroundings, build_consumers, check_sources
from lunaq_runtime.entries.parse_entry import Entry, read_entry
from lunaq_runtime.entries.parse_fields import EntriesError, Problems, kind_of
from lunaq_runtime.entries.parse_policies import build_policies
from lunaq_runtime.entries.parse_queues import build_drivers, build_queues
from lunaq_runtime.entries.parse_stores import build_stores

if TYPE_CHECKING:
    from collections.abc import Callable

    from lunaq_runtime.entries.model import Queue
    from lunaq_runtime.ids import Id
    from lunaq_runtime.policy import Policy

__all__ = ["DEFAULT_NAMESPACE", "EntriesError", "parse", "policies_of"]

DEFAULT_NAMESPACE = "app"
_DOCUMENT_FIELDS = ("version", "namespace", "entries", "meta")
_DRIVER_KINDS = ("queue.driver.memory", "queue.driver.amqp")


def parse(
    document: Mapping[str, Any] | str,
    *,
    read: Callable[[str], str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Document:
    """Read a document, as YAML text or as data, or raise EntriesError with all its mistakes.

    `read` returns the text of a file by its path relative to the document (`file://…`, `<id>.lua`), or
    raises OSError; without it there are no files. `environ` is where `lunaq.envFrom` looks; None leaves
    such variables out without a word, for checks on another machine.
    """
    problems = Problems()
    namespace, entries = _read(document, problems)
    drivers = _of_kind(entries, *_DRIVER_KINDS)
    queues = _of_kind(entries, "queue.queue")
    around = Surroundings(
        namespace=namespace,
        queues=queues,
        functions=_of_kind(entries, "function.lua"),
        libraries=_of_kind(entries, "library.lua"),
        read=read or _no_files,
        environ=environ,
    )
    built_drivers = build_drivers(list(drivers.values()), environ or {})
    built_queues = build_queues(list(queues.values()), drivers)
    _check_queue_names(built_queues, queues)
    consumers = build_consumers(list(_of_kind(entries, "queue.consumer").values()), around)
    check_sources(around)
    policies = build_policies(list(_of_kind(entries, "security.policy").values()))
    _check_policy_consumers(entries)
    if problems.errors:
        raise EntriesError(dict.fromkeys(problems.errors))
    return Document(
        namespace=namespace,
        drivers=built_drivers,
        queues=built_queues,
        consumers=consumers,
        policies=policies,
        stores=build_stores(list(_of_kind(entries, "store.memory").values())),
        warnings=tuple(dict.fromkeys(problems.warnings)),
    )


def policies_of(document: Mapping[str, Any] | str) -> dict[Id, Policy]:
    """Read only the `security.policy` entries of a document, or raise EntriesError with its mistakes."""
    problems = Problems()
    _, entries = _read(document, problems)
    policies = build_policies(list(_of_kind(entries, "security.policy").values()))
    if problems.errors:
        raise EntriesError(problems.errors)
    return policies


class _Loader(yaml.CSafeLoader):
    """Refuses a key that stands twice in one mapping: YAML's "the last one wins" hides mistakes."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - overrides yaml's
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key_node.value!r} stands here twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _read(document: Mapping[str, Any] | str, problems: Problems) -> tuple[str, list[Entry]]:
    """Read the document's frame and all entries that are ours to run."""
    raw = _load(document) if isinstance(document, str) else document
    if not isinstance(raw, Mapping):
        raise EntriesError([f"document: must be an object with entries, not {kind_of(raw)}"])
    namespace = _namespace(raw, problems)
    if "entries" not in raw and "kind" in raw:
        single = {key: value for key, value in raw.items() if key not in ("version", "namespace")}
        listed: Any = [single]
    else:
        listed = raw.get("entries")
        _check_frame(raw, problems)
    if not isinstance(listed, (list, tuple)):
        text = f"entries: must be a list, not {kind_of(listed)}: begin each entry with a dash"
        problems.errors.append(text)
        listed = []
    # References are typed, so entries of different kinds may share an ID, as resources of Kubernetes do.
    result: dict[tuple[str, Id], Entry] = {}
    for index, item in enumerate(listed):
        entry = read_entry(item, f"entries[{index}]", namespace, problems)
        if entry is None:
            continue
        family = "queue.driver" if entry.kind in _DRIVER_KINDS else entry.kind
        first = result.setdefault((family, entry.id), entry)
        if first is not entry:
            entry.place.error("name", f"{entry.id} is taken by {first.place.label}: rename one")
    return namespace, list(result.values())


def _load(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of the safe loader
    except yaml.MarkedYAMLError as error:
        at = f"line {error.problem_mark.line + 1}" if error.problem_mark else "document"
        raise EntriesError([f"{at}: {error.problem or error.context}: the text is not valid YAML"]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise EntriesError([f"document: the text is not valid YAML: {error}"]) from None


def _namespace(raw: Mapping[str, Any], problems: Problems) -> str:
    namespace = raw.get("namespace")
    if namespace is None:
        return DEFAULT_NAMESPACE
    if not isinstance(namespace, str) or not namespace or ":" in namespace or "*" in namespace:
        text = f"namespace: must be words separated by dots, such as app.mail, not {kind_of(namespace)}"
        problems.errors.append(text)
        return DEFAULT_NAMESPACE
    return namespace


def _check_frame(raw: Mapping[str, Any], problems: Problems) -> None:
    for key in raw:
        if key not in _DOCUMENT_FIELDS:
            problems.warnings.append(f"document {key}: is not a known field and is ignored")


def _of_kind(entries: list[Entry], *kinds: str) -> dict[Id, Entry]:
    return {entry.id: entry for entry in entries if entry.kind in kinds}


def _no_files(path: str) -> str:
    raise FileNotFoundError(2, "this document stands in no folder", path)


def _check_queue_names(queues: dict[Id, Queue], entries: dict[Id, Entry]) -> None:
    """Refuse two queues with one broker-side name on one driver: they would share their messages."""
    owners: dict[tuple[Id, str], Id] = {}
    for queue in queues.values():
        owner = owners.setdefault((queue.driver, queue.queue_name), queue.id)
        if owner != queue.id:
            text = f"{queue.queue_name} is the broker-side name of {owner} already: write another one"
            entries[queue.id].place.error("queue_name", text)


def _check_policy_consumers(entries: list[Entry]) -> None:
    consumers = _of_kind(entries, "queue.consumer")
    for entry in _of_kind(entries, "security.policy").values():
        consumer = entry.values["consumer"]
        if consumer is not None and consumer not in consumers:
            text = f"{consumer} is not a consumer of this document, so the policy has no effect"
            entry.place.warn("consumer", text)
