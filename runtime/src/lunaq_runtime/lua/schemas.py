"""JSON Schema for `json.validate` (lua-api.md 3.5), safe with hostile input; `callbacks` calls it.

Neither Lua's count hook nor a time limit runs inside Python, so all work is counted and ends at a budget,
patterns run on RE2 (linear time), and nothing is fetched. The only module that knows jsonschema, which it
imports at the first use: a runtime without schemas pays neither its time nor its memory.
"""

from __future__ import annotations

import contextlib
import functools
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import orjson

from lunaq_runtime import codecs, limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_CACHED = 32
_MAX_PATTERN = 1000
_PATTERN_COST = 500
_REF_COST = 50
_TEXT_PER_STEP = 64
_SHOWN = 300

_UNSUPPORTED = ("unevaluatedItems", "unevaluatedProperties", "$dynamicRef")
"""Keywords whose work jsonschema does outside the counted calls."""


class SchemaError(ValueError):
    """The schema or the value cannot be checked, or the value does not fit; the text says why."""


class _Budget:
    """What one validation may still do, in steps: schema visits, entries looked at, errors built."""

    def __init__(self, *, checks_schema: bool = False) -> None:
        self.checks_schema = checks_schema
        self._left = limits.MAX_SCHEMA_STEPS

    def charge(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise SchemaError(
                f"the validation takes more than {limits.MAX_SCHEMA_STEPS} steps: simplify the schema or"
                " validate a smaller value"
            )


_budget: ContextVar[_Budget] = ContextVar("lunaq_schema_budget")


def validate(schema: bytes, instance: bytes) -> None:
    """Check JSON text against a JSON Schema (2020-12) as text; raise SchemaError if it does not fit."""
    value = _parsed(instance, "value", limits.MAX_SCHEMA_INSTANCE)
    error = _first_error(_compiled(schema), value, _Budget())
    if error is not None:
        raise SchemaError(f"{error.json_path[:_SHOWN]}: {error.message[:_SHOWN]}")


def _parsed(text: bytes, what: str, most: int) -> Any:
    if len(text) > most:
        raise SchemaError(f"the {what} has {len(text)} bytes, more than {most}")
    try:
        return codecs.decode(text, None, codecs.JSON)
    except codecs.CodecError as error:
        raise SchemaError(str(error).replace("the body", f"the {what}")) from None


@functools.lru_cache(maxsize=_CACHED)
def _compiled(text: bytes) -> Any:
    schema = _parsed(text, "schema", limits.MAX_SCHEMA)
    if not isinstance(schema, dict | bool):
        raise SchemaError("the schema must be an object or a boolean")
    if isinstance(schema, dict):
        dialect = schema.pop("$schema", _DIALECT)
        if not isinstance(dialect, str) or dialect.removesuffix("#") != _DIALECT:
            raise SchemaError(f"unsupported $schema: only {_DIALECT} is known")
    _refuse_dialects(schema)
    make, meta = _library()
    if error := _first_error(make(meta), schema, _Budget(checks_schema=True)):
        raise SchemaError(f"invalid schema: {error.json_path[:_SHOWN]}: {error.message[:_SHOWN]}")
    try:
        return make(schema)
    except ValueError as error:
        raise SchemaError(f"invalid schema: {error!s:.{_SHOWN}}") from error


def _refuse_dialects(schema: Any) -> None:
    # jsonschema would go on with a validator of its own, that counts nothing.
    if isinstance(schema, dict):
        if isinstance(schema.get("$schema"), str):
            raise SchemaError("$schema is only supported at the root of a schema")
        for inner in schema.values():
            _refuse_dialects(inner)
    elif isinstance(schema, list):
        for inner in schema:
            _refuse_dialects(inner)


def _first_error(validator: Any, value: Any, budget: _Budget) -> Any:
    from referencing.exceptions import Unresolvable  # noqa: PLC0415 - at the first use only

    token = _budget.set(budget)
    try:
        return next(validator.iter_errors(value), None)
    except Unresolvable as error:
        raise SchemaError(
            f"cannot resolve $ref {str(error.ref)[:_SHOWN]!r}:"
            " it must point into the schema, nothing is fetched"
        ) from None
    except RecursionError:
        raise SchemaError("the schema nests too deeply, or a $ref leads back to itself") from None
    except (SchemaError, MemoryError):
        raise
    except Exception as error:
        # A $ref may lead to a part that the meta-schema had no reason to check.
        raise SchemaError(f"invalid schema: a part that is used is no schema: {error!s:.{_SHOWN}}") from error
    finally:
        _budget.reset(token)


@functools.cache
def _library() -> tuple[Callable[[Any], Any], Any]:
    """Import jsonschema; return what makes a counted validator of a schema, and the meta-schema."""
    from jsonschema import Draft202012Validator, validators  # noqa: PLC0415 - at the first use only
    from jsonschema_specifications import REGISTRY  # noqa: PLC0415
    from referencing import Registry  # noqa: PLC0415
    from referencing.exceptions import NoSuchResource  # noqa: PLC0415
    from referencing.jsonschema import DRAFT202012  # noqa: PLC0415

    no_resource: Any = NoSuchResource  # attrs: mypy does not see the fields
    new_registry: Any = Registry

    def refuse(uri: str) -> Any:
        raise no_resource(ref=uri)

    base = _DIALECT.removesuffix("schema")
    metas = {}
    for uri in REGISTRY:
        if uri.startswith(base):
            # Without $schema: see _refuse_dialects.
            kept = {key: inner for key, inner in REGISTRY.contents(uri).items() if key != "$schema"}
            metas[uri] = DRAFT202012.create_resource(kept)
    registry = new_registry(retrieve=refuse).with_resources(metas.items()).crawl()
    keywords = {**Draft202012Validator.VALIDATORS, **_own_keywords()}
    meta = metas[_DIALECT].contents
    counted = validators.create(
        meta_schema=meta,
        validators={name: _counted(name, keyword) for name, keyword in keywords.items()},
        type_checker=Draft202012Validator.TYPE_CHECKER,
        id_of=Draft202012Validator.ID_OF,
        applicable_validators=_visited,
    )

    def make(schema: Any) -> Any:
        # Given a registry, jsonschema would add those of other drafts, whose $schema leads out of the count.
        # Crawled once here: else each $ref to an anchor would crawl the whole schema again, uncounted.
        resource = DRAFT202012.create_resource(schema)
        uri = resource.id() or ""
        resolver = registry.with_resource(uri, resource).crawl().resolver(base_uri=uri)
        return counted(schema, _resolver=resolver)

    return make, meta


def _visited(schema: Any) -> Iterable[tuple[str, Any]]:
    if budget := _budget.get(None):  # none while a validator is made
        budget.charge(1 + len(schema))
    items: Iterable[tuple[str, Any]] = schema.items()
    return items


def _counted(name: str, keyword: Callable[..., Any]) -> Callable[..., Iterator[Any]]:
    def counted(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
        budget = _budget.get()
        budget.charge(1 + _breadth(instance) + _breadth(value))
        if name in ("enum", "const", "uniqueItems"):
            budget.charge(_weight(instance) + _weight(value))
        elif name in ("$ref", "$dynamicRef"):
            budget.charge(_REF_COST + len(value))
            if not value.startswith("#/"):
                budget.charge(_weight(validator.schema))
        elif name in _UNSUPPORTED and not budget.checks_schema:
            raise SchemaError(f"{name} is not supported")
        if name == "$dynamicRef" and not budget.checks_schema:
            raise SchemaError("$dynamicRef is not supported: use $ref")
        for error in keyword(validator, value, instance, schema) or ():
            budget.charge(_weight(instance))  # its text was built from the whole instance
            yield error

    return counted


def _breadth(value: Any) -> int:
    if isinstance(value, str):
        return len(value) // _TEXT_PER_STEP
    return len(value) if isinstance(value, dict | list) else 0


def _weight(value: Any) -> int:
    """Count a value's nodes, and its texts by length."""
    total, open_ = 0, [value]
    while open_:
        item = open_.pop()
        total += 1 + (len(item) // _TEXT_PER_STEP if isinstance(item, str) else 0)
        if isinstance(item, dict):
            open_.extend(item)
            open_.extend(item.values())
        elif isinstance(item, list):
            open_.extend(item)
    return total


@functools.lru_cache(maxsize=256)
def _pattern(pattern: str) -> Any:
    import re2  # noqa: PLC0415 - at the first use only

    _budget.get().charge(_PATTERN_COST)
    if len(pattern) > _MAX_PATTERN:
        raise SchemaError(f"a pattern has {len(pattern)} characters, more than {_MAX_PATTERN}")
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 1 << 20
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0]
        reason = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise SchemaError(
            f"unsupported pattern {pattern[:80]!r}: {reason} (RE2 syntax: no lookaround, no back-references)"
        ) from None


def _matches(pattern: str, text: str) -> bool:
    _budget.get().charge(1 + len(text) * (1 + len(pattern) // 16) // _TEXT_PER_STEP)
    return _pattern(pattern).search(text) is not None


def _own_keywords() -> dict[str, Callable[..., Any]]:  # noqa: C901 - one small function for each keyword
    """Return the keywords that jsonschema would run on `re`, or compare in squared time."""
    from jsonschema.exceptions import ValidationError  # noqa: PLC0415 - at the first use only

    def pattern(validator: Any, value: Any, instance: Any, _: Any) -> Iterator[Any]:
        if validator.is_type(instance, "string") and not _matches(value, instance):
            yield ValidationError(f"{instance[:80]!r} does not match {value[:80]!r}")

    def pattern_properties(validator: Any, value: Any, instance: Any, _: Any) -> Iterator[Any]:
        if validator.is_type(instance, "object"):
            for each, subschema in value.items():
                for key, inner in instance.items():
                    if _matches(each, key):
                        yield from validator.descend(inner, subschema, path=key, schema_path=each)

    def additional(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
        if not validator.is_type(instance, "object"):
            return
        named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        for key, inner in instance.items():
            if key in named or any(_matches(each, key) for each in patterns):
                continue
            if value is False:
                yield ValidationError(f"additional property {key[:80]!r} is not allowed")
            else:
                yield from validator.descend(inner, value, path=key)

    def unique(validator: Any, value: Any, instance: Any, _: Any) -> Iterator[Any]:
        if value and validator.is_type(instance, "array"):
            texts = {orjson.dumps(_canonical(item), option=orjson.OPT_SORT_KEYS) for item in instance}
            if len(texts) != len(instance):
                yield ValidationError("the array has equal items")

    def format_(_validator: Any, value: Any, instance: Any, _: Any) -> None:
        # An annotation by the standard, except that the meta-schema tells with it where patterns are.
        if value == "regex" and isinstance(instance, str) and _budget.get().checks_schema:
            _pattern(instance)

    return {
        "pattern": pattern,
        "patternProperties": pattern_properties,
        "additionalProperties": additional,
        "uniqueItems": unique,
        "format": format_,
    }


def _canonical(value: Any) -> Any:
    """Write equal numbers alike: 1.0 as 1."""
    if isinstance(value, float):
        with contextlib.suppress(OverflowError, ValueError):
            return int(value) if value == int(value) and abs(value) < 2**53 else value
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    return value
