"""The operator's picture of the cluster: objects by kind and key, complete or not yet; filled by `watch`.

Lists replace, events amend, and both may arrive late: kopf hands events over through queues of its own,
while a list is seen at the HTTP response. So each is judged by its resourceVersion, which the API server
lets clients compare as integers. No I/O, no clock: pure data with a rule.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from lunaq_operator.kinds import Kind

Obj = dict[str, Any]
Index = "Callable[[Obj], Iterable[Any]]"

_TOMBSTONES = 10_000


class Key(NamedTuple):
    """An object's key within its kind; `namespace` is empty for what is cluster-scoped."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


def key_of(obj: Obj) -> Key:
    """Return the key of an API object."""
    return Key(obj["metadata"].get("namespace") or "", obj["metadata"]["name"])


def uid_of(obj: Obj) -> str:
    """Return an object's uid, empty where a test's object has none."""
    return str(obj["metadata"].get("uid") or "")


def version_of(metadata: dict[str, Any]) -> int:
    """Return a resourceVersion as a number; 0 ("older than all") where it is none."""
    text = str(metadata.get("resourceVersion") or "")
    return int(text) if text.isdigit() else 0


@dataclass(slots=True)
class KindStore:
    """Objects of one kind. `scopes` are the namespaces that are listed apart; `""` is the whole cluster."""

    kind: Kind
    scopes: tuple[str, ...] = ("",)
    objects: dict[Key, Obj] = field(default_factory=dict)
    generation: int = 0
    """Grows with every change, so that what was computed from all objects knows when it is stale."""

    _listed: dict[str, int] = field(default_factory=dict)
    _gone: OrderedDict[str, int] = field(default_factory=OrderedDict)
    _indexes: dict[str, Callable[[Obj], Iterable[Any]]] = field(default_factory=dict)
    _indexed: dict[str, dict[Any, set[Key]]] = field(default_factory=dict)

    @property
    def listed(self) -> bool:
        """Whether every scope was listed in full at least once."""
        return all(scope in self._listed for scope in self.scopes)

    def add_index(self, name: str, values: Callable[[Obj], Iterable[Any]]) -> None:
        """Keep a reverse map from what `values` says of an object to the object's key."""
        self._indexes[name] = values
        self._indexed[name] = {}
        for obj in self.objects.values():
            self._index(obj)

    def by(self, index: str, value: Any) -> list[Obj]:
        """Return the objects that an index files under `value`, in the order of their keys."""
        return [self.objects[key] for key in sorted(self._indexed[index].get(value, ()))]

    def get(self, namespace: str, name: str) -> Obj | None:
        """Return one object, if the store has it."""
        return self.objects.get(Key(namespace, name))

    def replace(self, scope: str, items: Collection[Obj], list_version: int) -> tuple[set[Key], list[Obj]]:
        """Take a complete list of one scope: what it lacks is gone, unless it is newer than the list.

        Returns the keys that were added or changed, and the objects that vanished. Newer than the list is
        only what the operator wrote itself since; the watch that follows the list will confirm it.
        """
        listed = {key_of(item): item for item in items}
        gone = [
            obj
            for key, obj in self.objects.items()
            if scope in ("", key.namespace)
            and key not in listed
            and not version_of(obj["metadata"]) > list_version
        ]
        for obj in gone:
            self._drop(obj, list_version)
        changed = {key for key, item in listed.items() if self._put(item)}
        self._listed[scope] = max(list_version, self._listed.get(scope, 0))
        return changed, gone

    def put(self, obj: Obj) -> bool:
        """Take an object from an event or a write's answer; False where the store knows better."""
        listed = self._listed.get("", self._listed.get(obj["metadata"].get("namespace") or "", 0))
        version = version_of(obj["metadata"])
        if version and version <= listed:
            return False
        return self._put(obj)

    def remove(self, obj: Obj) -> bool:
        """Take a deletion; False where the key belongs to a newer object by now."""
        version = version_of(obj["metadata"])
        known = self.objects.get(key_of(obj))
        self._bury(obj, version)
        if known is None or uid_of(known) != uid_of(obj) or version_of(known["metadata"]) > version:
            return False
        self._drop(known, version)
        return True

    def _put(self, obj: Obj) -> bool:
        version = version_of(obj["metadata"])
        if version and version <= self._gone.get(uid_of(obj), -1):
            return False
        known = self.objects.get(key_of(obj))
        if known is not None:
            if version and version_of(known["metadata"]) >= version:
                return False
            self._unindex(known)
        obj["metadata"].pop("managedFields", None)  # half of an object's size, and nobody reads it
        obj.setdefault("kind", self.kind.kind)
        obj.setdefault("apiVersion", self.kind.api_version)
        self.objects[key_of(obj)] = obj
        self._index(obj)
        self.generation += 1
        return True

    def _drop(self, obj: Obj, version: int) -> None:
        self._bury(obj, version)
        self._unindex(obj)
        del self.objects[key_of(obj)]
        self.generation += 1

    def _bury(self, obj: Obj, version: int) -> None:
        self._gone[uid_of(obj)] = version
        self._gone.move_to_end(uid_of(obj))
        while len(self._gone) > _TOMBSTONES:
            self._gone.popitem(last=False)

    def _index(self, obj: Obj) -> None:
        for name, values in self._indexes.items():
            for value in values(obj):
                self._indexed[name].setdefault(value, set()).add(key_of(obj))

    def _unindex(self, obj: Obj) -> None:
        for name, values in self._indexes.items():
            for value in values(obj):
                keys = self._indexed[name].get(value, set())
                keys.discard(key_of(obj))
                if not keys:
                    self._indexed[name].pop(value, None)


class Store:
    """All kinds; `synced` is the barrier before which nothing may be concluded from an absence."""

    def __init__(self, kinds: Iterable[Kind], namespaces: tuple[str, ...] = ()) -> None:
        self._kinds = {
            kind: KindStore(kind, namespaces if namespaces and kind.namespaced else ("",)) for kind in kinds
        }

    def __getitem__(self, kind: Kind) -> KindStore:
        return self._kinds[kind]

    def __contains__(self, kind: Kind) -> bool:
        return kind in self._kinds

    def __iter__(self) -> Iterator[KindStore]:
        return iter(self._kinds.values())

    @property
    def synced(self) -> bool:
        """Whether all kinds are listed in full."""
        return all(kind.listed for kind in self)

    def missing(self) -> list[str]:
        """Name the kinds that are not listed yet."""
        return [store.kind.plural for store in self if not store.listed]
