-- The `store` module (lua-api.md 3.8): Python keeps the values (lua/modules/store.py).
local S = ...

local type, error, setmetatable, mathtype = type, error, setmetatable, math.type
local call, host, fail, answer = S.call, S.host, S.fail, S.answer

local opened = setmetatable({}, { __mode = "k" }) -- store -> its ID
local released = setmetatable({}, { __mode = "k" })
local methods = {}
local Store = S.class("store.Store", methods, {
  __tostring = function(object)
    return "store.Store{id=" .. (opened[object] or "") .. "}"
  end,
})

local function id_of(object, name)
  local id = opened[object]
  if not id then
    error("store:" .. name .. "() needs a store; call it with a colon", 3)
  end
  return id
end

local function method(name, body)
  methods[name] = function(object, ...)
    local id = id_of(object, name)
    if released[object] then
      return fail("store is released")
    end
    return body(id, ...)
  end
end

-- Only texts and numbers cross over as they are.
local function text(value)
  return type(value) == "string" and value or nil
end

local function ttl_of(value)
  if value == nil or type(value) == "number" then
    return value, true
  end
  return nil, false
end

method("get", function(id, key)
  return answer(call(host.store_get, id, text(key)))
end)

method("entry", function(id, key)
  return answer(call(host.store_entry, id, text(key)))
end)

method("has", function(id, key)
  return answer(call(host.store_has, id, text(key)))
end)

method("delete", function(id, key)
  return answer(call(host.store_delete, id, text(key)))
end)

method("info", function(id)
  return answer(call(host.store_info, id))
end)

method("set", function(id, key, value, ttl)
  local seconds, is_ttl = ttl_of(ttl)
  local out = {}
  local n, why = S.flatten(value, out, 0)
  if not (n and is_ttl) then
    return fail(why or "ttl must be a number of seconds")
  end
  return answer(call(host.store_set, id, text(key), seconds, S.with_tokens(out, n)))
end)

method("put", function(id, key, value, options)
  if options ~= nil and type(options) ~= "table" then
    return fail("options must be a table")
  end
  options = options or {}
  local seconds, is_ttl = ttl_of(options.ttl)
  local version = options.if_version
  if version ~= nil and mathtype(version) ~= "integer" then
    return fail("if_version must be an integer, the version of an entry")
  end
  local out = {}
  local n, why = S.flatten(value, out, 0)
  if not (n and is_ttl) then
    return fail(why or "ttl must be a number of seconds")
  end
  local absent = options.only_if_absent and true or false
  return answer(call(host.store_put, id, text(key), seconds, absent, version, S.with_tokens(out, n)))
end)

method("list", function(id, options)
  if options ~= nil and type(options) ~= "table" then
    return fail("options must be a table")
  end
  options = options or {}
  local limit = options.limit
  if limit ~= nil and type(limit) ~= "number" then
    return fail("limit must be a number")
  end
  return answer(call(host.store_list, id, text(options.prefix) or "", text(options.after) or "", limit))
end)

function methods.release(object)
  id_of(object, "release")
  released[object] = true
  return true
end

local store = {
  backend = S.readonly("store.backend", {
    MEMORY = "memory",
    SQL = "sql",
    KV_RAFT = "kv_raft",
    KV_CRDT = "kv_crdt",
    UNKNOWN = "unknown",
  }),
  consistency = S.readonly("store.consistency", {
    LINEARIZABLE = "linearizable",
    EVENTUAL = "eventual",
    LOCAL = "local",
    UNKNOWN = "unknown",
  }),
}

function store.get(id)
  if type(id) ~= "string" or id == "" then
    return fail("store ID required")
  end
  local ok, err = call(host.store_open, id)
  if not ok then
    return nil, err
  end
  local object = setmetatable({}, Store)
  opened[object] = id
  return object, nil
end

S.modules.store = store
