"""json.validate and json.validate_string (lua-api.md 3.5), also against hostile schemas and values."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from lua_driver import run

from lunaq_runtime.lua import schemas


def answered(call: str) -> list[str]:
    finished = run(f"local ok, e = {call} print(ok) print(e and e:kind()) print(e and e:message())")
    assert finished.finished.error is None, finished.finished.error
    return finished.printed


def refusal(schema: Any, value: Any) -> str:
    with pytest.raises(schemas.SchemaError) as caught:
        schemas.validate(json.dumps(schema).encode(), json.dumps(value).encode())
    return str(caught.value)


def accepted(schema: Any, value: Any) -> None:
    schemas.validate(json.dumps(schema).encode(), json.dumps(value).encode())


@pytest.mark.parametrize(
    "call",
    [
        "json.validate({type = 'integer'}, 5)",
        """json.validate('{"type": "object"}', {a = 1})""",
        "json.validate({}, 'anything')",
        "json.validate_string({type = 'array'}, '[1]')",
    ],
)
def test_what_fits_is_true_without_an_error(call: str):
    assert answered(call) == ["true", "nil", "nil"]


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("json.validate({type = 'integer'}, 'x')", "$: 'x' is not of type 'integer'"),
        ("json.validate(nil, 1)", "schema required"),
        ("json.validate(5, 1)", "schema required"),
        ("json.validate({}, nil)", "value required"),
        ("json.validate({type = 'nonsense'}, 1)", "invalid schema"),
        ("json.validate('{', 1)", "the schema is not JSON"),
        ("json.validate({}, {1, a = 2})", "the value cannot be JSON"),
        ("json.validate_string({type = 'array'}, '{}')", "is not of type 'array'"),
        ("json.validate_string({}, 5)", "string expected"),
        ("json.validate_string({}, '')", "empty string is not valid JSON"),
        ("json.validate_string({}, '{} x')", "the value is not JSON"),
    ],
)
def test_what_does_not_fit_is_false_and_invalid(call: str, reason: str):
    ok, kind, message = answered(call)
    assert (ok, kind) == ("false", "Invalid")
    assert reason in message


def test_a_schema_is_compiled_once_for_its_text():
    before = schemas._compiled.cache_info()
    for _ in range(3):
        accepted({"title": "compiled once"}, 1)
    after = schemas._compiled.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 2)


def test_a_pattern_that_would_backtrack_for_ever_ends():
    schema = {"pattern": "^(a+)+$", "patternProperties": {"^(a+)+$": False}, "additionalProperties": True}
    assert "does not match" in refusal(schema, "a" * 50_000 + "b")
    accepted(schema, {"a" * 50_000 + "b": 1})


@pytest.mark.parametrize("schema", [{"pattern": "(?=a)b"}, {"patternProperties": {r"(a)\1": {}}}])
def test_a_pattern_that_needs_backtracking_is_refused_with_the_schema(schema: Any):
    assert "unsupported pattern" in refusal(schema, 1)


def test_a_ref_that_leads_to_itself_ends():
    assert "leads back to itself" in refusal({"$ref": "#"}, 1)


BOMB = {
    "$ref": "#/$defs/0",
    "$defs": {str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(40)} | {"40": {}},
}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (BOMB, 1),
        (json.loads(json.dumps(BOMB).replace("allOf", "anyOf").replace("{}", "false")), 1),
        ({"items": {"type": "integer"}}, [1] * 200_000),
        ({"uniqueItems": True}, [[]] * 150_000),
        ({"items": {f"unknown{n}": 1 for n in range(2000)}}, [1] * 2000),
        ({"anyOf": [{"required": [f"k{n}" for n in range(1000)]}, True]}, {f"x{n}": n for n in range(2000)}),
    ],
    ids=["allOf", "anyOf", "items", "uniqueItems", "unknown keywords", "errors"],
)
def test_a_validation_ends_at_its_budget(schema: Any, value: Any):
    assert "takes more than 200000 steps" in refusal(schema, value)


def test_deep_and_large_things_are_refused():
    deep = b'{"not":' * 127 + b"{}" + b"}" * 127
    with pytest.raises(schemas.SchemaError, match=r"nests too deeply|is not|does not|should not"):
        schemas.validate(deep, b"1")
    with pytest.raises(schemas.SchemaError, match="maximum depth of 128"):
        schemas.validate(b"{}", b"[" * 200 + b"]" * 200)
    assert "the schema has" in refusal({"title": "x" * 70_000}, 1)
    assert "the value has" in refusal({}, "x" * 1_100_000)


def test_nothing_is_fetched():
    message = refusal({"$ref": "http://127.0.0.1:1/schema"}, 1)
    assert "nothing is fetched" in message
    assert "127.0.0.1:1/schema" in message


def test_another_dialect_cannot_take_over():
    other = "http://json-schema.org/draft-07/schema#"
    assert "unsupported $schema" in refusal({"$schema": other}, 1)
    assert "nothing is fetched" in refusal({"$ref": other}, {})
    assert "only supported at the root" in refusal({"items": {"$schema": other}}, [1])


@pytest.mark.parametrize("keyword", ["unevaluatedItems", "unevaluatedProperties"])
def test_a_keyword_whose_work_cannot_be_counted_is_refused(keyword: str):
    assert f"{keyword} is not supported" in refusal({keyword: False}, {})


def test_a_format_is_an_annotation():
    accepted({"format": "email"}, "no address")
    accepted({"format": "regex"}, "(")


def test_equal_items_are_found_by_json_equality():
    assert "equal items" in refusal({"uniqueItems": True}, [1, 1.0])
    accepted({"uniqueItems": True}, [1, True, "1", [1], {"a": 1}])


def test_additional_properties_see_names_and_patterns():
    schema = {"properties": {"a": {}}, "patternProperties": {"^x": {}}, "additionalProperties": False}
    accepted(schema, {"a": 1, "xy": 2})
    assert "additional property 'b'" in refusal(schema, {"b": 1})


def test_the_library_is_imported_at_the_first_use_only():
    source = (
        "import sys, lunaq_runtime.lua.state; print([m for m in ('jsonschema', 're2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"$ref": "#/minimum", "minimum": 3}, 5),
        ({"$ref": "#/required", "required": ["a"]}, 5),
        ({"$ref": "#/allOf/x", "allOf": [{}]}, 5),
        ({"$id": "http://[bad", "$ref": "#/$defs/a", "$defs": {"a": {}}}, 5),
        ({"$ref": "#/const", "const": {"properties": 3}}, {"a": 1}),
        ({"$ref": "#/enum/0", "enum": [{"pattern": 5, "required": 7, "properties": 3}]}, {"a": 1}),
    ],
)
def test_a_part_that_is_no_schema_is_invalid_where_it_is_used(schema: Any, value: Any):
    assert refusal(schema, value)
