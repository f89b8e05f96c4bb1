"""Reads an entries document and its Lua files from disk: the file edge of `entries.parse`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lunaq_runtime.entries.parse import EntriesError, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lunaq_runtime.entries.model import Document


def load(path: Path, environ: Mapping[str, str] | None = None) -> Document:
    """Read the document at `path` with the Lua files beside it; EntriesError has all mistakes."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise EntriesError([f"{path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise EntriesError([f"{path}: is not UTF-8 text: convert it"]) from None
    return parse(text, read=reader(path.parent), environ=environ)


def reader(folder: Path) -> Callable[[str], str]:
    """Return a reader of files below `folder`; `parse` hands it only paths that stay below."""

    def read(relative: str) -> str:
        return (folder / relative).read_text(encoding="utf-8")

    return read
