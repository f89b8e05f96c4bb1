"""The `store` module: shared by states, bounded, and its entries (lua-api.md 3.8)."""

from __future__ import annotations

import pytest
from lua_driver import IDENTITY, FakeHost, run

from lunaq_runtime.entries.model import Document, Handler, Store
from lunaq_runtime.entries.parse import EntriesError, parse
from lunaq_runtime.ids import Id
from lunaq_runtime.lua.errors import HandlerError
from lunaq_runtime.lua.modules.services import Services
from lunaq_runtime.lua.modules.store import MAX_PAGE_BYTES, MemoryStore, Stores
from lunaq_runtime.lua.requests import Finished
from lunaq_runtime.lua.state import LuaState, MessageContext

CACHE = Id("app", "cache")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def services(**settings: int) -> Services:
    return Services(stores=Stores([Store(CACHE, **settings)]))


def printed(source: str, shared: Services, host: FakeHost | None = None, **fields: int) -> list[str]:
    """Run a handler in a state of its own that has `shared` in common with others."""
    host = host or FakeHost()
    handler = Handler(
        "app.lua", f"function handle() local s = store.get('app:cache') {source}\nend", **fields
    )
    state = LuaState(handler, host, identity=IDENTITY, services=shared)
    assert state.start(MessageContext("1"), None).step() == Finished()
    return host.printed()


def test_what_one_state_sets_another_gets():
    shared = services()
    assert printed("print(s:set('a', {1, {b = false}, 2.5, 'x'}))", shared) == ["true nil"]
    source = "local v = s:get('a') print(v[1], v[2].b, v[3], v[4], math.type(v[1]))"
    assert printed(source, shared) == ["1 false 2.5 x integer"]


def test_a_value_is_a_copy_on_its_way_in_and_out():
    source = "local v = {n = 1} s:set('a', v) v.n = 2 local got = s:get('a') print(got.n) got.n = 3"
    assert printed(f"{source} print(s:get('a').n)", services()) == ["1", "1"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("'\\xff\\0'", "2"),
        ("{[1] = 'a', [3] = 'c'}", "c"),
        ("errors.new('broken')", "broken"),
        ("9007199254740993", "9007199254740993"),
        ("false", "false"),
    ],
)
def test_all_that_lua_has_comes_back_as_it_was(value: str, shown: str):
    source = (
        f"assert(s:set('a', {value})) local v = s:get('a')"
        " print(type(v) == 'table' and v[3] or #tostring(v) == 2 and #v or v)"
    )
    assert printed(source, services()) == [shown]


@pytest.mark.parametrize("value", ["nil", "print", "coroutine.create(print)"])
def test_what_has_no_value_is_invalid(value: str):
    assert printed(f"local v, err = s:set('a', {value}) print(v, err:kind())", services()) == ["nil Invalid"]


@pytest.mark.parametrize(
    "call",
    [
        "s:set('', 1)",
        "s:set(5, 1)",
        "s:get()",
        "s:set(('k'):rep(1025), 1)",
        "s:set('a', ('v'):rep(1024 * 1024))",
        "s:set('a', 1, -1)",
        "s:set('a', 1, 0/0)",
        "s:set('a', 1, 'soon')",
        "s:put('a', 1, {only_if_absent = true, if_version = 1})",
        "s:put('a', 1, {if_version = 'x'})",
        "s:put('a', 1, 5)",
        "s:list({limit = 0})",
        "s:list({limit = 1/0})",
        "s:list(5)",
        "(function() local t = {} t.t = t return s:set('a', t) end)()",
    ],
)
def test_wrong_arguments_are_invalid(call: str):
    assert printed(f"local v, err = {call} print(v, err:kind())", services()) == ["nil Invalid"]


@pytest.mark.parametrize(
    ("action", "call"),
    [
        ("store.key.get", "s:get('a')"),
        ("store.key.get", "s:entry('a')"),
        ("store.key.set", "s:set('a', 1)"),
        ("store.key.set", "s:put('a', 1)"),
        ("store.key.has", "s:has('a')"),
        ("store.key.delete", "s:delete('a')"),
        ("store.key.list", "s:list()"),
        ("store.info", "s:info()"),
        ("store.get", "store.get('app:cache')"),
    ],
)
def test_what_the_policy_denies_is_answered_and_not_raised(action: str, call: str):
    host = FakeHost(denied=((action, "app:cache"),))
    source = (
        f"s = s or store.get('app:cache') local v, err = {call} print(v, err:kind(), err:details().action)"
    )
    assert printed(source, services(), host) == [f"nil PermissionDenied {action}"]


def test_an_expired_key_is_gone_and_makes_room():
    clock = Clock()
    store = MemoryStore(Store(CACHE, max_size=2), clock)
    store.put(b"a", 1, 10.0)
    store.put(b"b", 2)
    clock.now = 9.9
    assert store.has(b"a")
    with pytest.raises(HandlerError, match="full at 2 keys"):
        store.put(b"c", 3)
    clock.now = 10.0
    assert not store.has(b"a")
    store.put(b"c", 3)
    assert [key for key, _, _ in store.page(b"", b"", 10)[0]] == [b"b", b"c"]


def test_the_clean_up_forgets_what_nobody_asks_for_any_more():
    clock = Clock()
    store = MemoryStore(Store(CACHE, cleanup_interval=60.0), clock)
    store.put(b"a", 1, 1.0)
    clock.now = 59.0
    store.put(b"b", 1)
    assert set(store._items) == {b"a", b"b"}
    clock.now = 60.0
    store.put(b"c", 1)
    assert set(store._items) == {b"b", b"c"}


def test_a_store_is_bounded_in_bytes_and_gives_them_back():
    store = MemoryStore(Store(CACHE, max_bytes=4096))
    store.put(b"a", "x" * 3000)
    with pytest.raises(HandlerError, match="full at 4096 bytes"):
        store.put(b"b", "x" * 3000)
    store.put(b"a", "x" * 3500)
    store.delete(b"a")
    store.put(b"b", "x" * 3500)
    store.delete(b"b")
    assert store._bytes == 0


def test_a_page_is_bounded_in_bytes_as_well():
    store = MemoryStore(Store(CACHE))
    for number in range(8):
        store.put(b"%d" % number, "x" * (MAX_PAGE_BYTES // 4))
    seen, after, more = [], b"", True
    while more:
        items, more = store.page(b"", after, 1000)
        assert 0 < len(items) <= 4
        after = items[-1][0]
        seen += [key for key, _, _ in items]
    assert seen == [b"%d" % number for number in range(8)]


def test_a_version_tells_that_a_key_was_set_again_even_after_it_was_gone():
    store = MemoryStore(Store(CACHE))
    first = store.put(b"a", 1)
    store.delete(b"a")
    store.put(b"a", 1)
    with pytest.raises(HandlerError, match="read it again"):
        store.put(b"a", 2, if_version=first)


def test_a_value_too_large_for_a_states_memory_ends_its_handler_only():
    shared = services()
    for number in range(4):
        printed(f"assert(s:set('{number}', ('x'):rep(1000 * 1000)))", shared)
    host = FakeHost()
    source = """
        function handle()
          local s, all = store.get('app:cache'), {}
          for i = 0, 3 do all[i] = s:get(tostring(i)) end
        end
    """
    handler = Handler("app.lua", source, memory_limit=2 * 1024 * 1024)
    state = LuaState(handler, host, identity=IDENTITY, services=shared)
    finished = state.start(MessageContext("1"), None).step()
    assert isinstance(finished, Finished)
    assert finished.error is not None
    assert "memory limit" in finished.error.text
    assert printed("print(#s:get('3'))", shared) == ["1000000"]


def test_a_method_needs_its_colon():
    error = run("store.get('x').get('a')").finished.error
    assert error is not None


def test_each_consumer_has_a_store_of_its_own_id_beside_those_declared():
    document = parse(
        {
            "entries": [
                {"kind": "queue.driver.memory", "name": "memory"},
                {"kind": "queue.queue", "name": "work"},
                {"kind": "queue.consumer", "name": "worker", "queue": "work", "source": "return print"},
                {"kind": "store.memory", "name": "cache", "max_size": 7, "lunaq": {"maxBytes": "1Mi"}},
            ]
        }
    )
    assert document.stores == {CACHE: Store(CACHE, 7, 1024 * 1024, 300.0)}
    stores = Services.of(document).stores
    assert stores.find("app:worker").info["id"] == "app:worker"
    assert stores.find("app:cache").info["id"] == "app:cache"
    with pytest.raises(HandlerError, match="not a store: app:work"):
        stores.find("app:work")
    with pytest.raises(HandlerError, match="store not found"):
        Services.of(Document("app")).stores.find("app:cache")


@pytest.mark.parametrize("field", [{"max_size": 0}, {"cleanup_interval": "5"}, {"lunaq": {"maxBytes": "1"}}])
def test_a_store_entry_with_a_value_out_of_range_is_refused(field: dict[str, object]):
    with pytest.raises(EntriesError, match=next(iter(field))):
        parse({"entries": [{"kind": "store.memory", "name": "cache", **field}]})
