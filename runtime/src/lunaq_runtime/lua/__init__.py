"""Handlers in Lua 5.4: sandboxed states, invocations driven as coroutines, the modules of lua-api.md.

Nothing here does I/O: a blocking call becomes a request (`requests`) that the worker carries out.
"""
