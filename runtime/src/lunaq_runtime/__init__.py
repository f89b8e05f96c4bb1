"""The Lua runtime of Lunaq: runs an entries document on a broker (design.md section 5)."""
