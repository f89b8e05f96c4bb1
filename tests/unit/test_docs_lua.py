"""The reference in docs/lua is whole and true: an entry for each function, each example run."""

from __future__ import annotations

from typing import Any

import pytest
from lua_driver import IDENTITY, FakeHost
from lupa.lua54 import LuaRuntime

from harness import lua_pages
from lunaq_runtime.entries.model import Handler
from lunaq_runtime.lua.state import DEFAULT_MODULES, LuaState

PAGES = lua_pages.pages()
# What Lua 5.4's own manual documents; pages tell only how ours differ (dialect.md) or what we add.
LIBRARIES = ("string", "table", "math", "coroutine", "utf8")


class OpenState(LuaState):
    """A state whose prelude's shared table can be looked into."""

    def _shared(self, identity: Any) -> Any:
        self.shared = super()._shared(identity)
        return self.shared


@pytest.fixture(scope="module")
def documented() -> dict[str, str]:
    return {name: entry.page for page in PAGES for entry in lua_pages.entries(page) for name in entry.names}


@pytest.fixture(scope="module")
def state() -> OpenState:
    modules = (*DEFAULT_MODULES, "http_client")
    handler = Handler("app.lua", "return function() end", modules=modules)
    return OpenState(handler, FakeHost(), identity=IDENTITY)


def functions_of(lua: Any, name: str, table: Any) -> set[str]:
    """List the functions of a table, and of tables in it, by full name."""
    found: set[str] = set()
    copied = lua.eval(b"function(t) local r = {} for k, v in pairs(t) do r[k] = v end return r end")(table)
    for key, item in copied.items():
        kind = lua.globals()[b"type"](item)
        full = ".".join(filter(None, (name, key.decode()))) if isinstance(key, bytes) else ""
        if kind == b"function":
            found.add(full)
        elif kind == b"table" and name and full:
            found |= functions_of(lua, full, item)
    return found


def reachable(state: OpenState) -> set[str]:
    """List what a handler can call: module functions, and methods of what they return."""
    names = functions_of(state._lua, "os", state.shared[b"os"])
    for name, module in state.shared[b"modules"].items():
        names |= functions_of(state._lua, name.decode(), module)
    for name, methods in state.shared[b"classes"].items():
        short = name.decode().rsplit(".", 1)[-1]
        names |= {f"{short}:{key.decode()}" for key in methods}
    return names


def functions_of_lua(lua: Any, libraries: Any) -> set[str]:
    """List the global functions and those of Lua's own libraries."""
    names = functions_of(lua, "", lua.globals())
    for name in LIBRARIES:
        names |= functions_of(lua, name, libraries[name.encode()])
    return names


@pytest.fixture(scope="module")
def stock() -> set[str]:
    """What a fresh Lua 5.4 has."""
    lua = LuaRuntime(encoding=None, register_eval=False, register_builtins=False)
    return functions_of_lua(lua, lua.globals())


@pytest.fixture(scope="module")
def there(state: OpenState, stock: set[str]) -> set[str]:
    """What a handler can call, but for what a fresh Lua has as well."""
    return reachable(state) | (functions_of_lua(state._lua, state.shared[b"libraries"]) - stock)


def test_every_function_a_handler_can_reach_has_an_entry(there: set[str], documented: dict[str, str]):
    assert sorted(there - set(documented)) == []


def test_every_entry_is_of_a_function_that_can_be_reached(
    there: set[str], stock: set[str], documented: dict[str, str]
):
    lost = {f"{page}: {name}" for name, page in documented.items() if name not in there | stock}
    assert sorted(lost) == []


def test_no_function_has_two_entries():
    names = [name for page in PAGES for entry in lua_pages.entries(page) for name in entry.names]
    assert sorted({name for name in names if names.count(name) > 1}) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_entry_has_the_form_of_the_reference(page: Any):
    mistakes = [
        f"docs/lua/{entry.page}: {', '.join(entry.names)} {mistake}"
        for entry in lua_pages.entries(page)
        for mistake in entry.mistakes()
    ]
    assert mistakes == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
async def test_every_example_of_the_page_does_what_it_says(page: Any):
    assert await lua_pages.run_all(page) == []


def test_the_index_names_every_page():
    index = (lua_pages.PAGES / "README.md").read_text()
    assert [page.name for page in PAGES if f"]({page.name})" not in index] == []
