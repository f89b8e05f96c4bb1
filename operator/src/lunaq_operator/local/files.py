"""Reading manifests from files and folders, as `kubectl apply -f` does; used by `lunaq run`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

SUFFIXES = (".yaml", ".yml", ".json")


class LocalError(Exception):
    """What was given cannot be run; `problems` has one text per mistake, each naming file and place."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True, slots=True)
class Found:
    """One document of a file; `where` is the path, with the document's number where there are several."""

    path: Path
    where: str
    document: dict[str, Any]


class _Loader(yaml.CSafeLoader):
    """Refuses a key that stands twice in one mapping, as the API server does under strict validation."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - overrides yaml's
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands here twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read(paths: Iterable[Path]) -> list[Found]:
    """Read all documents of files, and of the YAML and JSON files directly in folders, in order.

    A `List` counts as its items. LocalError names every file that cannot be read.
    """
    found: list[Found] = []
    problems: list[str] = []
    for path in paths:
        try:
            for file in _files(path):
                found.extend(_documents(file))
        except LocalError as error:
            problems.extend(error.problems)
    if not found and not problems:
        problems.append("there is no document in the given files")
    if problems:
        raise LocalError(problems)
    return found


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if not files:
        raise LocalError([f"{path}: there is no {', '.join(SUFFIXES)} file in this folder"])
    return files


def _documents(path: Path) -> Iterator[Found]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise LocalError([f"{path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise LocalError([f"{path}: is not UTF-8 text: convert it"]) from None
    try:
        documents = list(yaml.load_all(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise LocalError([f"{path}: {line}{error.problem or error.context}"]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise LocalError([f"{path}: is not YAML: {error}"]) from None
    for number, document in enumerate(documents, 1):
        if document is None:
            continue
        where = f"{path} (document {number})" if len(documents) > 1 else str(path)
        if not isinstance(document, dict):
            raise LocalError([f"{where}: must be an object with apiVersion and kind, or with entries"])
        if document.get("kind") == "List" and isinstance(document.get("items"), list):
            items = [item for item in document["items"] if isinstance(item, dict)]
            yield from (Found(path, f"{where} item {at}", item) for at, item in enumerate(items, 1))
        else:
            yield Found(path, where, document)
