-- What a handler's coroutine runs: the handler, on one message after the other. Making a coroutine for each
-- message costs more than many a handler (memory, the hook, and both for the collector).
-- This file is loaded without debug information, and its function has the handler for a vararg, not a name:
-- so tracebacks and `error(text, 2)` show what they would if the handler had been the coroutine's own function.
local S = ...

local yield = coroutine.yield
local DONE = function() end -- a function, for `==` on them never asks a metatable

S.DONE = DONE

function S.serve(body, ...)
  local yield, DONE = yield, DONE -- on the stack, which is at hand
  while true do
    body = yield(DONE, (...)(body))
  end
end
