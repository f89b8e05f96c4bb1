"""The published table of fields describes every field, and is what documents are read by."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunaq_runtime.entries import schema
from lunaq_runtime.entries.parse import EntriesError, parse
from lunaq_runtime.entries.quantity import parse_quantity

if TYPE_CHECKING:
    from collections.abc import Iterator

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = sorted({*schema.COMMON, *(name for table in schema.KINDS.values() for name in table["properties"])})


def fields(table: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, field in table.get("properties", {}).items():
        yield f"{path}.{name}", field
        yield from fields(field, f"{path}.{name}")


def test_every_field_of_every_kind_has_a_description() -> None:
    found = [one for kind, table in schema.KINDS.items() for one in fields(table, kind)]
    assert len(found) > 80
    assert [path for path, field in found if not field.get("description")] == []


@given(st.sampled_from(sorted(schema.KINDS)), st.dictionaries(st.sampled_from(NAMES), JUNK, max_size=6))
def test_junk_in_any_field_is_an_entries_error_or_accepted_but_never_a_crash(
    kind: str, entry: dict[str, Any]
) -> None:
    base = [{"name": "b", "kind": "queue.driver.memory"}, {"name": "q", "kind": "queue.queue"}]
    with contextlib.suppress(EntriesError):
        parse({"entries": [*base, {"name": "e", **entry, "kind": kind}]})


@given(st.text(max_size=40))
def test_any_text_is_a_document_or_an_entries_error(text: str) -> None:
    with contextlib.suppress(EntriesError):
        parse(text)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("64Mi", 64 * 2**20),
        ("1.5k", 1500),
        ("1e6", 10**6),
        ("1E", 10**18),
        ("5", 5),
        (".5Ki", 512),
        ("0.1", 1),
    ],
)
def test_quantities_are_read_as_kubernetes_reads_them(text: str, amount: int) -> None:
    assert parse_quantity(text) == amount


@pytest.mark.parametrize("text", ["", "Mi", "64MB", "64ki", "-1", "1 Mi", "64m", "1e999"])
def test_other_quantities_are_refused_with_how_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity: write bytes with a suffix, such as 64Mi"):
        parse_quantity(text)
