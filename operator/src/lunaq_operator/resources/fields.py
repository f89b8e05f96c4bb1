"""Reading a spec field by field, so that what is wrong is told by its path; used by the resource models.

The API server has validated what it hands us, but files on a laptop were seen by nobody: the schema's
rules are therefore checked here as well, and its defaults filled in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from lunaq_runtime import durations
from lunaq_runtime.entries.quantity import parse_quantity

T = TypeVar("T")

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
DNS_SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")

LONGEST_MS = 1176 * 3600 * 1000
"""49 days, just below what brokers can count (2^32 ms)."""


class SpecError(Exception):
    """The spec cannot be, and only its author can mend it.

    `field` is the path from the object's root (`spec.retry.delays[1]`), `reason` a text for its author.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class Fields:
    """One object of a spec, read key by key; `null` is "absent", as it is to the API server."""

    def __init__(self, data: Any, path: str) -> None:
        if not isinstance(data, Mapping):
            raise SpecError(path, f"must be an object, not {kind_of(data)}")
        self.data: Mapping[str, Any] = data
        self.path = path
        self._known: set[str] = set()
        self._children: list[Fields] = []

    def at(self, key: str) -> str:
        """Return the path of a key, for an error's text."""
        return f"{self.path}.{key}"

    def has(self, key: str) -> bool:
        """Tell whether the key is set."""
        self._known.add(key)
        return self.data.get(key) is not None

    def unknown(self) -> Iterator[str]:
        """Yield the paths of all keys that nothing has read, this object's and its children's."""
        for key in self.data:
            if key not in self._known:
                yield self.at(key)
        for child in self._children:
            yield from child.unknown()

    def text(
        self,
        key: str,
        default: str | None = None,
        *,
        pattern: re.Pattern[str] | None = None,
        says: str = "",
        longest: int | None = None,
    ) -> str:
        """Read a text; without a default it is required. `says` tells what `pattern` wants."""
        value = self._typed(key, str, default)
        if pattern is not None and self.has(key) and not pattern.match(value):
            raise SpecError(self.at(key), f"{value!r} is not {says}")
        if longest is not None and len(value) > longest:
            raise SpecError(self.at(key), f"has {len(value)} characters, at most {longest} are allowed")
        return value

    def name(self, key: str = "name", default: str | None = None) -> str:
        """Read the name of another object."""
        return self.text(key, default, pattern=DNS_SUBDOMAIN, says="the name of an object")

    def choice(self, key: str, choices: tuple[str, ...], default: str | None = None) -> str:
        """Read one of a few words."""
        value = self._typed(key, str, default)
        if value not in choices:
            raise SpecError(self.at(key), f"{value!r} is not one of {', '.join(choices)}")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """Read a boolean."""
        return self._typed(key, bool, default)

    def integer(self, key: str, default: int | None = None, *, least: int = 0, most: int = 2**31 - 1) -> int:
        """Read an integer within bounds; without a default it is required."""
        value = self._typed(key, int, default)
        if not least <= value <= most:
            raise SpecError(self.at(key), f"{value} is not within {least} and {most}")
        return value

    def optional_integer(self, key: str, *, least: int = 0, most: int = 2**31 - 1) -> int | None:
        """Read an integer that may be absent."""
        return self.integer(key, least=least, most=most) if self.has(key) else None

    def duration(self, key: str, default: str, *, most: int = LONGEST_MS) -> int:
        """Read a duration above zero (`30s`, `1h30m`); `most` and the result are in milliseconds."""
        return duration_ms(self._typed(key, str, default), self.at(key), most)

    def optional_duration(self, key: str) -> int | None:
        """Read a duration that may be absent; in milliseconds."""
        return self.duration(key, "") if self.has(key) else None

    def quantity(self, key: str, default: str) -> int:
        """Read a Kubernetes quantity of bytes (`64Mi`); the result is in bytes."""
        value = self.data.get(key)
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else None
        try:
            return parse_quantity(text if text is not None else self._typed(key, str, default))
        except ValueError as error:
            raise SpecError(self.at(key), str(error)) from error

    def mapping(self, key: str) -> dict[str, Any]:
        """Read an object that goes through as it is, such as an affinity."""
        return self._typed(key, dict, {})

    def texts_by_key(self, key: str) -> dict[str, str]:
        """Read an object of texts, such as labels."""
        values = self.mapping(key)
        for name, value in values.items():
            if not isinstance(value, str):
                raise SpecError(f"{self.at(key)}.{name}", f"must be a text, not {kind_of(value)}")
        return values

    def items(self, key: str, *, most: int = 1000) -> list[tuple[Any, str]]:
        """Read a list; each item comes with its path."""
        values = self._typed(key, list, [])
        if len(values) > most:
            raise SpecError(self.at(key), f"has {len(values)} items, at most {most} are allowed")
        return [(value, f"{self.at(key)}[{at}]") for at, value in enumerate(values)]

    def texts(self, key: str, *, most: int = 1000) -> tuple[str, ...]:
        """Read a list of texts."""
        result = []
        for value, path in self.items(key, most=most):
            if not isinstance(value, str):
                raise SpecError(path, f"must be a text, not {kind_of(value)}")
            result.append(value)
        return tuple(result)

    def child(self, key: str, read: Callable[[Fields], T]) -> T | None:
        """Read an object inside, if it is there."""
        return self._child(self.data[key], self.at(key), read) if self.has(key) else None

    def required(self, key: str, read: Callable[[Fields], T]) -> T:
        """Read an object inside that must be there."""
        if not self.has(key):
            raise SpecError(self.at(key), "is required")
        return self._child(self.data[key], self.at(key), read)

    def children(self, key: str, read: Callable[[Fields], T], *, most: int = 1000) -> tuple[T, ...]:
        """Read a list of objects."""
        return tuple(self._child(value, path, read) for value, path in self.items(key, most=most))

    def exactly_one(self, *keys: str) -> None:
        """Refuse none and more than one of these keys."""
        if sum(self.has(key) for key in keys) != 1:
            raise SpecError(self.path, f"needs exactly one of {', '.join(keys)}")

    def _child(self, value: Any, path: str, read: Callable[[Fields], T]) -> T:
        fields = Fields(value, path)
        self._children.append(fields)
        return read(fields)

    def _typed(self, key: str, wanted: type[T], default: T | None) -> T:
        if not self.has(key):
            if default is None:
                raise SpecError(self.at(key), "is required")
            return default
        value = self.data[key]
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise SpecError(self.at(key), f"must be {_WORDS[wanted]}, not {kind_of(value)}")
        return value


_WORDS: dict[type, str] = {
    str: "a text",
    bool: "true or false",
    int: "an integer",
    dict: "an object",
    list: "a list",
}


def kind_of(value: Any) -> str:
    """Say in the words of YAML what a value is."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    for type_, word in (*_WORDS.items(), (float, "a number")):
        if isinstance(value, type_):
            return f"{word} ({value})" if isinstance(value, int | float | str) else word
    return type(value).__name__


def duration_ms(text: str, path: str, most: int = LONGEST_MS) -> int:
    """Read a duration above zero into whole milliseconds; SpecError names `path`."""
    try:
        value = durations.to_milliseconds(durations.parse_duration(text))
    except ValueError as error:
        raise SpecError(path, str(error)) from error
    if not 1 <= value <= most:
        longest = durations.format_duration(most * durations.MILLISECOND)
        raise SpecError(path, f"{text!r} is not within 1ms and {longest}")
    return value
