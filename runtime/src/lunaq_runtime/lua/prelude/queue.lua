-- The `queue` module (lua-api.md section 1). Publishing yields its raw arguments: all checks happen in
-- Python (lua/publishing.py), in their order, without a call back in between.
local S = ...

local type, next, select, tostring, error, setmetatable = type, next, select, tostring, error, setmetatable
local call, host, request, fail = S.call, S.host, S.request, S.fail
local answered = S.answered

local KEPT <const> = 4096 -- bytes of a message that may stay in memory until the next one

local DELIVERY <const>, ASKED <const>, ASKED_COUNT <const>, TOKEN <const>, REPLY <const> = 1, 7, 8, 9, 10
local SCRATCH <const>, YIELD <const>, TYPE <const>, APPEND_PAIRS <const> = 17, 18, 19, 20
local MAX_BODY <const>, MAX_VALUES <const>, METATABLE_OF <const>, STRING <const> = 21, 22, 23, 24
local UNSEEN <const>, AHEAD <const> = 26, 27
local hot = S.hot -- see scheduler.lua
hot[YIELD], hot[TYPE], hot[APPEND_PAIRS] = coroutine.yield, type, S.append_pairs
hot[MAX_BODY], hot[MAX_VALUES] = S.limits.body, S.most_values
hot[METATABLE_OF], hot[STRING] = S.raw_metatable, S.raw_metatable("") -- see encode.lua

local function id_of(value)
  if type(value) == "number" then
    return "string", tostring(value)
  end
  return type(value), type(value) == "string" and value or nil
end

-- Flattens what lua-api.md 1.3 accepts; an unsupported value becomes nil, which Python reports.
-- Returns why not where they are more than any message may have: what is handed over is copied.
local function flatten_headers(headers, out, n)
  out[n + 1] = host.OBJECT
  local at, count, size = n + 2, 0, 0
  n = at
  if type(headers) == "table" then
    for key, value in next, headers do
      if type(key) == "string" then
        local kind = type(value)
        out[n + 1] = key
        out[n + 2] = (kind == "string" or kind == "boolean" or kind == "number") and value or nil
        if value == false then
          out[n + 2] = false
        end
        n, count = n + 2, count + 1
        size = size + #key + (kind == "string" and #value or 8)
        if size > hot[MAX_BODY] then
          out[at] = 0
          return at, "cannot send headers of more than " .. hot[MAX_BODY] .. " bytes"
        end
      end
    end
  end
  out[at] = count
  return n, nil
end

local queue = {}

local function publish(...)
  local count, id, data, headers = select("#", ...), ...
  local id_type, id_text = id_of(id)
  local empty = data == nil or data == ""
  local state = (count < 2 or data == nil) and "missing" or "given"
  local out, n, why = {}, nil, nil
  if type(data) == "table" then
    empty = next(S.frozen[data] or data) == nil
  end
  if state == "given" and empty then
    state = "empty"
  end
  n, why = S.flatten(data, out, 0)
  if not n then
    out, n = {}, 1
  end
  local too_large
  n, too_large = flatten_headers(headers, out, n)
  why = why or too_large
  return S.publish("publish", count, id_type, id_text, state, why, S.with_tokens(out, n))
end

-- Of one message after the other: filling a new table takes several allocations.
local function new_scratch()
  hot[SCRATCH] = { "publish_pairs" }
end
new_scratch()

function queue.publish(...)
  local hot = hot
  if not hot[DELIVERY] then
    return fail("no context")
  end
  if hot[AHEAD] then
    S.show(true) -- the publish before this one comes first
  end
  local id, data, headers = ...
  if headers == nil and id ~= "" and hot[METATABLE_OF](id) == hot[STRING] and hot[TYPE](data) == "table" then
    -- As most are: nothing is left for Python to check but the rights.
    local out = hot[SCRATCH]
    local n, left = hot[APPEND_PAIRS](data, out, 2, hot[MAX_BODY], hot[MAX_VALUES])
    if not n or hot[MAX_BODY] - left > KEPT then
      new_scratch()
    end
    if n and n > 2 then
      out[2] = id
      hot[ASKED], hot[ASKED_COUNT] = out, n
      if hot[UNSEEN] then
        hot[UNSEEN], hot[AHEAD] = false, true
        return true, nil
      end
      local mark, ok, first, second = hot[YIELD](hot[TOKEN])
      if ok and mark == hot[REPLY] then
        return first, second
      end
      return answered(mark, ok, first)
    end
  end
  return publish(...)
end

function queue.info(...)
  if not S.delivery() then
    return fail("no context")
  end
  local id_type, id_text = id_of((...))
  return request("info", select("#", ...), id_type, id_text)
end

-- Message wrapper -> the delivery it belongs to; S.delivery() is another number with every message.
local settled -- the delivery that was settled last
local deliveries = setmetatable({}, { __mode = "k" })

local function delivery_of(message, name)
  local delivery = deliveries[message]
  if not delivery then
    error("msg:" .. name .. "() needs a message; call it with a colon", 3)
  end
  if delivery ~= S.delivery() then
    return fail("queue.Message released")
  end
  return delivery
end

local methods = {}

function methods.id(message)
  local delivery, err = delivery_of(message, "id")
  if not delivery then
    return nil, err
  end
  return call(host.message_id), nil
end

function methods.header(message, key)
  local delivery, err = delivery_of(message, "header")
  if not delivery then
    return nil, err
  end
  if type(key) ~= "string" then
    S.bad_argument(1, "header", "string expected, got " .. type(key))
  end
  return call(host.message_header, key), nil
end

function methods.headers(message)
  local delivery, err = delivery_of(message, "headers")
  if not delivery then
    return nil, err
  end
  return call(host.message_headers), nil
end

local function settle(name)
  return function(message)
    local delivery, err = delivery_of(message, name)
    if not delivery then
      return nil, err
    elseif settled == delivery then
      return fail("queue.Message already settled")
    end
    settled = delivery
    return request(name)
  end
end
methods.ack = settle("ack")
methods.nack = settle("nack")

local Message = S.class("queue.Message", methods, {
  __tostring = function(message)
    if deliveries[message] ~= S.delivery() then
      return "queue.Message{released}"
    end
    return "queue.Message{id=" .. call(host.message_id) .. "}"
  end,
})

function queue.message()
  if not S.delivery() then
    return fail("no delivery found in context")
  end
  local message = setmetatable({}, Message)
  deliveries[message] = S.delivery()
  return message, nil
end

S.modules.queue = queue
