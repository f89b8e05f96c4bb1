"""Bodies of keys that come again are built by Lua functions made for them (`lua.shapes`)."""

from __future__ import annotations

import pytest
from lua_driver import FakeHost, load

from lunaq_runtime.lua import shapes
from lunaq_runtime.lua.requests import SUCCEEDED
from lunaq_runtime.lua.state import LuaState, MessageContext

SHOWN = """
return function(body)
  local keys = {}
  for key, value in pairs(body) do keys[#keys + 1] = key .. "=" .. value end
  print(table.concat(keys, "|"))
end
"""


def handled(state: LuaState, host: FakeHost, body: dict[str, str]) -> list[str]:
    """Run the handler on a body until its shape is learnt and used; returns what it printed each time."""
    for _ in range(3):
        assert state.start(MessageContext("1"), body).step() is SUCCEEDED
    bodies: list[object] = []
    assert state.pack(body, bodies), "its shape was not learnt"
    state.start_batch(1, bodies, 100, lambda _place: False)
    state.finished()
    return host.printed()


@pytest.mark.parametrize(
    "key",
    [
        '"]=1}) os.exit() --',
        "]]",
        "\\",
        '\\"',
        "\\065",
        "\x012",
        "1\n2\r3",
        "\0",
        "end return",
        "Grüße, 世界",
        "k" * 300,
    ],
)
def test_a_key_is_only_ever_a_key(key: str):
    """It becomes a constant of Lua source; nothing in it may be more than that."""
    host = FakeHost()
    assert handled(load(SHOWN, host=host), host, {key: "v"}) == [f"{key}=v"] * 4


def test_long_keys_are_not_learnt():
    """What is learnt stays, and does not count for the memory limit."""
    host = FakeHost()
    state = load(SHOWN, host=host)
    body = {"k" * shapes.MAX_KEY_BYTES: "v", "l": "w"}
    for _ in range(3):
        assert state.start(MessageContext("1"), body).step() is SUCCEEDED
    assert not state.pack(body, [])
    assert sorted(host.printed()[2].split("|")) == ["k" * shapes.MAX_KEY_BYTES + "=v", "l=w"]
