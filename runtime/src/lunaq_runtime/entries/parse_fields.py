"""Reading one object of an entries document by its table in `schema`, collecting every error on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lunaq_runtime import codecs, durations
from lunaq_runtime.entries.quantity import parse_quantity
from lunaq_runtime.ids import Id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lunaq_runtime.entries.schema import Schema

_MAX_SHOWN = 60


class EntriesError(Exception):
    """A document that cannot be run; `errors` has one text per mistake, each naming place and fix."""

    def __init__(self, errors: Iterable[str]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(self.errors))


@dataclass(slots=True)
class Problems:
    """What was found wrong, and what deserves a word, over a whole document."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a document we are: `entries[2] (queue.consumer app:worker)`."""

    label: str
    namespace: str
    problems: Problems

    def error(self, path: str, text: str) -> None:
        """Note a mistake in the field at `path` (empty: the entry as a whole)."""
        self.problems.errors.append(self._line(path, text))

    def warn(self, path: str, text: str) -> None:
        """Note what is accepted but deserves a word."""
        self.problems.warnings.append(self._line(path, text))

    def _line(self, path: str, text: str) -> str:
        return f"{self.label} {path}: {text}" if path else f"{self.label}: {text}"


class _FieldError(ValueError):
    """A value that does not fit its field; the text is for the author."""


def read_object(schema: Schema, raw: dict[Any, Any], place: Place, path: str = "") -> dict[str, Any]:
    """Read all fields of `schema` from `raw`.

    Every field is in the result: converted, its default, or None where it has none or was wrong (then
    `place` has the error); an object inside that is absent has the defaults of its fields. Durations are
    nanoseconds, quantities bytes, references `Id`s.
    """
    values: dict[str, Any] = {}
    for name, field_schema in schema["properties"].items():
        at = f"{path}.{name}" if path else name
        values[name] = _read_field(field_schema, raw.get(name), place, at)
    if schema.get("additionalProperties") is True:
        return values
    for name in raw:
        if name not in schema["properties"]:
            _unknown(schema, str(name), place, f"{path}.{name}" if path else str(name))
    return values


def kind_of(value: Any) -> str:
    """Say in the words of YAML what a value is."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value[:_MAX_SHOWN]!r}"
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else "a date"


def parse_id(value: Any, namespace: str) -> Id:
    """Read an ID, as text or as `{ns, name}`; ValueError says how to write one."""
    if isinstance(value, dict) and set(value) <= {"ns", "name"}:
        value = f"{value.get('ns', namespace)}:{value.get('name', '')}"
    if not isinstance(value, str):
        raise _FieldError(f"must be an ID such as {namespace}:emails, not {kind_of(value)}")
    result = Id.parse(value, namespace)
    if not (result.namespace and result.name):
        raise _FieldError(f"{value!r} is not an ID: write <namespace>:<name>, such as {namespace}:emails")
    return result


def _unknown(schema: Schema, name: str, place: Place, at: str) -> None:
    known = ", ".join(sorted(schema["properties"]))
    if schema.get("additionalProperties") is False:
        place.error(at, f"is not a known field: known are {known}")
    else:
        place.warn(at, f"{name} is not a known field and is ignored")


def _read_field(schema: Schema, value: Any, place: Place, at: str) -> Any:
    if value is None:
        if "x-required" in schema:
            place.error(at, schema["x-required"])
        return _default(schema, place, at)
    if "x-ignored" in schema:
        place.warn(at, f"has no effect: {schema['x-ignored']}")
    try:
        return _convert(schema, value, place, at)
    except ValueError as error:
        place.error(at, str(error))
        return _default(schema, place, at)


def _default(schema: Schema, place: Place, at: str) -> Any:
    if "properties" in schema:
        return read_object(schema, {}, place, at)
    # A default is written as an author would write it, and so is read like what an author wrote.
    default = schema.get("default")
    return None if default is None else _convert(schema, default, place, at)


def _convert(schema: Schema, value: Any, place: Place, at: str) -> Any:
    if "format" in schema:
        return _FORMATS[schema["format"]](schema, value, place)
    if "type" not in schema:
        return value
    return _TYPES[schema["type"]](schema, value, place, at)


def _string(schema: Schema, value: Any, _place: Place, _at: str) -> str:
    if not isinstance(value, str):
        raise _FieldError(f"must be a text, not {kind_of(value)}: put it in quotes")
    if len(value) < schema.get("minLength", 0):
        raise _FieldError("must not be empty")
    if "enum" in schema and value not in schema["enum"]:
        raise _FieldError(f"{value!r} is not one of {', '.join(schema['enum'])}")
    return value


def _boolean(_schema: Schema, value: Any, _place: Place, _at: str) -> bool:
    if not isinstance(value, bool):
        raise _FieldError(f"must be true or false, not {kind_of(value)}")
    return value


def _integer(schema: Schema, value: Any, _place: Place, at: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _FieldError(f"must be an integer, not {kind_of(value)}")
    name = at.rpartition(".")[2]
    if value > schema.get("maximum", value):
        raise _FieldError(f"{name} {value} exceeds maximum {schema['maximum']}")
    if value < schema.get("minimum", value):
        raise _FieldError(f"{name} {value} is below minimum {schema['minimum']}")
    return value


def _array(schema: Schema, value: Any, place: Place, at: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _FieldError(f"must be a list, not {kind_of(value)}")
    if len(value) < schema.get("minItems", 0):
        raise _FieldError(f"needs at least {schema['minItems']} item")
    if len(value) > schema.get("maxItems", len(value)):
        raise _FieldError(f"has {len(value)} items, at most {schema['maxItems']} are allowed")
    items = []
    for index, item in enumerate(value):
        try:
            items.append(_convert(schema["items"], item, place, f"{at}[{index}]"))
        except ValueError as error:
            place.error(f"{at}[{index}]", str(error))
    return tuple(items)


def _object(schema: Schema, value: Any, place: Place, at: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _FieldError(f"must be an object, not {kind_of(value)}")
    if "properties" in schema:
        return read_object(schema, value, place, at)
    inner = schema.get("additionalProperties")
    if not isinstance(inner, dict):
        return value
    result = {}
    for name, item in value.items():
        try:
            if not isinstance(name, str) or not name:
                raise _FieldError(f"a name must be a text, not {kind_of(name)}")
            result[name] = _convert(inner, item, place, f"{at}.{name}")
        except ValueError as error:
            place.error(f"{at}.{name}", str(error))
    return result


def _duration(schema: Schema, value: Any, _place: Place) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value != 0:
        raise _FieldError(f"{value} has no unit: write {value}s or {value}ms")
    if not isinstance(value, str):
        raise _FieldError(f"must be a duration such as 1m30s, not {kind_of(value)}")
    nanoseconds = durations.parse_duration(value)
    low, high = schema["x-minimum"], schema["x-maximum"]
    if not durations.parse_duration(low) <= nanoseconds <= durations.parse_duration(high):
        raise _FieldError(f"{value} is not within {low} and {high}")
    return nanoseconds


def _quantity(schema: Schema, value: Any, _place: Place) -> int:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise _FieldError(f"must be a quantity such as 64Mi, not {kind_of(value)}")
    amount = parse_quantity(str(value))
    if amount < schema["x-minimum"]:
        raise _FieldError(f"{value} is below the least of {schema['x-minimum']} bytes")
    return amount


def _id(_schema: Schema, value: Any, place: Place) -> Id:
    return parse_id(value, place.namespace)


def _codec(_schema: Schema, value: Any, _place: Place) -> str:
    if not isinstance(value, str):
        raise _FieldError(f"must be a text, not {kind_of(value)}")
    return codecs.canonical(value)


def _pattern(_schema: Schema, value: Any, place: Place) -> str:
    if value == "*":
        raise _FieldError(f"'*' is ambiguous: write {place.namespace}:* or *:*")
    return str(parse_id(value, place.namespace))


_TYPES: dict[str, Callable[[Schema, Any, Place, str], Any]] = {
    "string": _string,
    "boolean": _boolean,
    "integer": _integer,
    "array": _array,
    "object": _object,
}
_FORMATS: dict[str, Callable[[Schema, Any, Place], Any]] = {
    "duration": _duration,
    "quantity": _quantity,
    "id": _id,
    "codec": _codec,
    "pattern": _pattern,
}
