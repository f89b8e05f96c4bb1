"""One entry of a document: who it is, and its fields by the table of its kind; called by `parse`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lunaq_runtime.entries import schema
from lunaq_runtime.entries.parse_fields import Place, Problems, kind_of, parse_id, read_object

if TYPE_CHECKING:
    from lunaq_runtime.ids import Id


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """An entry with its fields read: `values` has each field of its kind, `raw` is what was written."""

    id: Id
    kind: str
    raw: dict[str, Any]
    values: dict[str, Any]
    place: Place


def read_entry(raw: Any, label: str, namespace: str, problems: Problems) -> Entry | None:
    """Read one entry; None where it is not ours to run, and `problems` tells why."""
    place = Place(label, namespace, problems)
    if not isinstance(raw, dict):
        place.error("", f"must be an object, not {kind_of(raw)}")
        return None
    kind = raw.get("kind")
    if not isinstance(kind, str):
        place.error("kind", f"kind is required: one of {', '.join(schema.KINDS)}")
        return None
    entry_id = _id(raw, Place(f"{label} ({kind})", namespace, problems))
    if entry_id is None:
        return None
    place = Place(f"{label} ({kind} {entry_id})", entry_id.namespace, problems)
    if kind not in schema.KINDS:
        _refuse(kind, place)
        return None
    table = {"properties": {**schema.COMMON, **schema.KINDS[kind]["properties"]}}
    if "lunaq" in raw and "lunaq" not in table["properties"]:
        place.error("lunaq", f"{kind} has no settings of that kind: remove it")
    values = read_object(table, raw, place)
    if values["lifecycle"]["auto_start"] is False:
        place.warn("lifecycle.auto_start", "has no effect: every consumer starts")
    return Entry(entry_id, kind, raw, values, place)


def _id(raw: dict[str, Any], place: Place) -> Id | None:
    name, alias = raw.get("name"), raw.get("id")
    if name is None and alias is None:
        place.error("name", "name (or id) is required")
        return None
    if None not in (name, alias) and name != alias:
        place.error("id", "differs from name: give one of them")
    try:
        return parse_id(alias if name is None else name, place.namespace)
    except ValueError as error:
        place.error("name" if alias is None else "id", str(error))
        return None


def _refuse(kind: str, place: Place) -> None:
    if kind.startswith(schema.UNAVAILABLE_KINDS):
        place.warn("kind", f"{kind} is not available in this version and is ignored")
    elif kind.startswith(schema.OUT_OF_SCOPE_KINDS):
        place.error("kind", f"{kind} is out of scope of Lunaq: remove the entry")
    else:
        place.error("kind", f"{kind} is not a known kind: known are {', '.join(schema.KINDS)}")
