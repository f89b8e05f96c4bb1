"""A consumer's Lua is found where the contract says, and never outside the document's folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lunaq_runtime.entries.files import load
from lunaq_runtime.entries.parse import EntriesError, parse
from lunaq_runtime.ids import Id

if TYPE_CHECKING:
    from pathlib import Path

    from lunaq_runtime.entries.model import Handler

BASE = [{"name": "broker", "kind": "queue.driver.memory"}, {"name": "emails", "kind": "queue.queue"}]
WORKER = {"name": "worker", "kind": "queue.consumer", "queue": "emails"}
FILES = {"worker.lua": "-- worker", "src/h.lua": "-- handler", "lib.lua": "-- lib"}


def read(path: str) -> str:
    if path not in FILES:
        raise FileNotFoundError(2, "No such file or directory", path)
    return FILES[path]


def handler(*entries: dict[str, Any], **fields: Any) -> Handler:
    document = parse({"entries": [*BASE, {**WORKER, **fields}, *entries]}, read=read)
    return document.consumers[Id("app", "worker")].handler


def errors(*entries: dict[str, Any], **fields: Any) -> list[str]:
    with pytest.raises(EntriesError) as caught:
        handler(*entries, **fields)
    return list(caught.value.errors)


def function(**fields: Any) -> dict[str, Any]:
    return {"name": "handle", "kind": "function.lua", "source": "file://src/h.lua", **fields}


def library(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "kind": "library.lua", "source": f"-- {name}", **fields}


def test_without_func_and_source_the_file_beside_the_document_is_the_handler() -> None:
    found = handler(method="handle_email")
    assert (found.chunk_name, found.source, found.method) == ("worker.lua", "-- worker", "handle_email")


def test_an_inline_source_on_the_consumer_wins_over_the_file() -> None:
    found = handler(source="-- inline")
    assert (found.chunk_name, found.source) == ("app:worker", "-- inline")


def test_func_names_a_function_with_its_own_source_method_and_modules() -> None:
    found = handler(function(method="run", modules=["json"]), func="handle")
    assert (found.chunk_name, found.source, found.method, found.modules) == (
        "src/h.lua",
        "-- handler",
        "run",
        ("json",),
    )


def test_the_consumers_method_wins_over_the_functions() -> None:
    assert handler(function(method="run"), func="handle", method="other").method == "other"


def test_without_any_source_the_error_names_all_ways_to_give_one() -> None:
    (error,) = errors(id="nobody", name=None)
    assert error == (
        "entries[2] (queue.consumer app:nobody) func: function ID is required: write func, or source, or put"
        " the handler into nobody.lua beside this file"
    )


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../secret.lua", "src/../../secret.lua", "", ".", "~/../../x.lua"]
)
def test_a_file_outside_the_documents_folder_is_refused(path: str) -> None:
    (error,) = errors(source=f"file://{path}")
    assert "must be a path below this file's folder" in error


def test_an_id_cannot_lead_outside_the_documents_folder() -> None:
    (error,) = errors(id="../worker", name=None)
    assert "function ID is required" in error


def test_a_missing_file_is_named_once_even_where_two_consumers_use_it() -> None:
    other = {**WORKER, "name": "other", "func": "handle"}
    assert errors(function(source="file://gone.lua"), other, func="handle") == [
        "entries[3] (function.lua app:handle) source: file gone.lua cannot be read: No such file or directory"
    ]


def test_a_mistake_in_a_function_nobody_uses_is_told_as_well() -> None:
    (error,) = errors(function(source="file://gone.lua"), source="x")
    assert "file gone.lua cannot be read" in error


def test_what_belongs_to_the_function_is_refused_on_the_consumer() -> None:
    (error,) = errors(function(), func="handle", modules=["json"])
    assert "modules: belongs to app:handle, which `func` names: move it there" in error


def test_without_imports_all_libraries_of_the_namespace_are_granted() -> None:
    found = handler(
        library("email"), library("text", source="file://lib.lua"), library("other:far"), source="x"
    )
    assert found.imports == {"email": ("app:email", "-- email"), "text": ("lib.lua", "-- lib")}


def test_with_imports_only_those_are_granted_under_their_local_names() -> None:
    found = handler(library("email"), library("text"), source="x", imports={"mail": "email"})
    assert found.imports == {"mail": ("app:email", "-- email")}
    assert handler(library("email"), source="x", imports={}).imports == {}


def test_a_librarys_own_imports_come_along() -> None:
    found = handler(
        library("email", imports={"t": "text"}), library("text"), source="x", imports={"e": "email"}
    )
    assert found.imports == {"e": ("app:email", "-- email"), "t": ("app:text", "-- text")}


def test_libraries_that_import_each_other_come_to_an_end() -> None:
    found = handler(library("a", imports={"b": "b"}), library("b", imports={"a": "a"}), source="x")
    assert set(found.imports) == {"a", "b"}


def test_a_document_on_disk_finds_the_lua_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "entries.yaml").write_text(
        "entries:\n"
        "- {name: broker, kind: queue.driver.memory}\n"
        "- {name: emails, kind: queue.queue}\n"
        "- {name: worker, kind: queue.consumer, queue: emails}\n"
    )
    (tmp_path / "worker.lua").write_text("-- h\u00e4llo")
    document = load(tmp_path / "entries.yaml")
    assert document.consumers[Id("app", "worker")].handler.source == "-- h\u00e4llo"


@pytest.mark.parametrize(("content", "error"), [(None, "cannot be read"), (b"\xff\xfe", "is not UTF-8 text")])
def test_a_document_that_cannot_be_read_is_an_error_of_the_document(
    tmp_path: Path, content: bytes | None, error: str
) -> None:
    path = tmp_path / "entries.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EntriesError, match=error):
        load(path)
