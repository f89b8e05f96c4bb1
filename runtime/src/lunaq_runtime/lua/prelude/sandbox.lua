-- Takes away what a handler must not have, and keeps what the other files of the prelude need.
-- Loaded first by lua/state.py. `S` is shared by the prelude's files and never reachable from a handler.
local S = ...

local debug, rawget, rawset, type, next, error = debug, rawget, rawset, type, next, error
local pairs, ipairs, setmetatable, tostring = pairs, ipairs, setmetatable, tostring
local globals = _G

S.getinfo, S.sethook, S.traceback = debug.getinfo, debug.sethook, debug.traceback
S.raw_metatable = debug.getmetatable
S.load, S.tostring, S.rawget, S.collect = load, tostring, rawget, collectgarbage

-- All Python objects share one metatable. Without __index and __call a handler can neither read an
-- attribute of one nor call one; the prelude calls through the captured function.
local objects = debug.getmetatable(S.host.log)
local raw_call, point = objects.__call, S.host.point

-- S.index: which message of a batch (scheduler.lua) is being handled. Python hears of it when it is first
-- called on its behalf, and may answer that this one is to be the last of its batch.
-- S.waits: what must not happen before a publish is confirmed (ahead.lua).
local waits = {}
S.waits = waits
function S.call(callback, ...)
  if waits[callback] ~= nil then
    S.show(waits[callback])
  end
  if S.index ~= S.pointed then
    S.pointed = S.index
    if raw_call(point, S.index) then
      S.last = S.index
    end
  end
  return raw_call(callback, ...)
end

for key in pairs(objects) do
  if key ~= "__gc" then
    objects[key] = nil
  end
end
objects.__name = "error"
objects.__metatable = false
S.error_metatable = objects

debug.getmetatable("").__metatable = false

local protected = setmetatable({}, { __mode = "k" })

-- Makes the empty table `proxy` a view of `real` that can be read and iterated but not written to.
-- `real` itself is never handed out; `missing(key)` answers for what it does not have.
function S.seal(name, proxy, real, missing)
  protected[proxy] = true
  return setmetatable(proxy, {
    __index = missing and function(_, key)
      local value = real[key]
      if value == nil then
        return missing(key)
      end
      return value
    end or real,
    __newindex = function(_, key)
      error("attempt to write '" .. tostring(key) .. "' into the read-only table '" .. name .. "'", 2)
    end,
    __len = function()
      return #real
    end,
    __pairs = function()
      return function(_, key)
        return next(real, key)
      end, proxy, nil
    end,
    __metatable = false,
  })
end

function S.readonly(name, real, missing)
  return S.seal(name, {}, real, missing)
end

-- Metatables of our own objects (messages, times, loggers); in data such an object becomes null.
S.opaque = setmetatable({}, { __mode = "k" })

S.classes = {} -- name -> methods, for the test that holds the reference and the modules together

function S.class(name, methods, metamethods)
  local class = metamethods or {}
  class.__index = methods
  class.__name = name
  class.__metatable = false
  S.classes[name] = methods
  class.__newindex = function()
    error("a " .. name .. " is read-only", 2)
  end
  S.opaque[class] = true
  return class
end

function S.bad_argument(position, name, text, level)
  error("bad argument #" .. position .. " to '" .. name .. "' (" .. text .. ")", (level or 2) + 1)
end

globals.setmetatable = function(object, metatable)
  -- A finalizer would run where no time limit can reach it.
  if type(metatable) == "table" and rawget(metatable, "__gc") ~= nil then
    error("setmetatable: __gc is not available in a handler", 2)
  end
  return setmetatable(object, metatable)
end

globals.rawset = function(object, key, value)
  if type(object) == "table" and (protected[object] or S.opaque[S.raw_metatable(object)]) then
    error("rawset: this table is read-only", 2)
  end
  return rawset(object, key, value)
end

for _, name in ipairs({
  "load",
  "loadstring",
  "loadfile",
  "dofile",
  "collectgarbage",
  "rawlen",
  "io",
  "debug",
  "package",
  "python",
  "warn",
}) do
  globals[name] = nil
end
string.dump = nil
