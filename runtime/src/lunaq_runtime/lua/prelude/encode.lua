-- Flattens Lua values into a stream of tokens, which Python turns into plain data (lua/bridge.py).
-- A table is a marker, a count, and its parts; nil is null (lua-api.md 1.2).
local S = ...

local type, next, error, pcall, rawequal, rawget = type, next, error, pcall, rawequal, rawget
local setmetatable = setmetatable
local mathtype, huge, unpack = math.type, math.huge, table.unpack
local metatable_of, opaque, call = S.raw_metatable, S.opaque, S.call
local STRING = metatable_of("") -- nothing else has it: no handler gets hold of it
local ARRAY, OBJECT, error_text, feed = S.host.ARRAY, S.host.OBJECT, S.host.error_text, S.host.feed

local MAX_DEPTH, MAX_BODY, MAX_FIELDS = S.limits.depth, S.limits.body, S.limits.fields
local TOKEN = 8 -- bytes that a value counts in fields, besides its text
local CHUNK = 100 -- values per call to Python; with more of them, lupa gets slower for each
S.most_values = CHUNK

-- Frozen tables (stdlib.lua) keep their entries behind a metatable: proxy -> the entries.
local frozen = setmetatable({}, { __mode = "k" })
S.frozen = frozen

local empty_object = { __name = "object" }

-- An empty table that encodes as {} instead of [].
function S.new_object()
  return setmetatable({}, empty_object)
end

local refusal -- why the value being flattened cannot be encoded
local room, most -- bytes that the value may still have, and may have at all: what is encoded is copied

local function refuse(text)
  refusal = text
  error(refuse, 0)
end

-- A table with the keys 1..n is an array, and so is an empty one unless it came from an empty object.
-- Anything else is an object with its keys as they are: what mixed keys and holes mean is the codec's.
local function kind_of(value)
  local count, highest, plain = 0, 0, true
  for key in next, value do
    local kind = type(key)
    count = count + 1
    if mathtype(key) == "integer" and key >= 1 then
      if key > highest then
        highest = key
      end
    elseif kind == "string" or kind == "number" or kind == "boolean" then
      plain = false
    else
      refuse("cannot encode a table with a key of type " .. kind)
    end
  end
  if plain and highest == count and (count > 0 or not rawequal(metatable_of(value), empty_object)) then
    return ARRAY, count
  end
  return OBJECT, count
end

-- Counts `bytes` of the value. The count is of what is encoded, so a text that is there twice counts twice.
local function take(bytes)
  room = room - bytes
  if room < 0 then
    refuse("cannot encode more than " .. most .. " bytes")
  end
end

local flatten

local function flatten_table(value, out, n, depth, seen)
  value = frozen[value] or value
  if seen[value] then
    refuse("cannot encode recursive nesting (a table that contains itself)")
  elseif depth >= MAX_DEPTH then
    refuse("cannot encode beyond the maximum depth of " .. MAX_DEPTH)
  end
  local kind, count = kind_of(value)
  seen[value] = true
  out[n + 1], out[n + 2] = kind, count
  n = n + 2
  if rawequal(kind, ARRAY) then
    for index = 1, count do
      n = flatten(rawget(value, index), out, n, depth + 1, seen)
    end
  else
    for key, item in next, value do
      if type(key) == "string" then
        take(#key)
      end
      out[n + 1] = key
      n = flatten(item, out, n + 1, depth + 1, seen)
    end
  end
  seen[value] = nil
  return n
end

function flatten(value, out, n, depth, seen)
  local kind = type(value)
  if kind == "string" then
    take(#value)
    out[n + 1] = value
  elseif kind == "number" or kind == "boolean" then
    out[n + 1] = value
  elseif kind == "table" and not opaque[metatable_of(value)] then
    return flatten_table(value, out, n, depth, seen)
  elseif kind == "userdata" then
    local text = call(error_text, value)
    take(#text)
    out[n + 1] = text
  else
    out[n + 1] = nil -- assigned on purpose: a refused value may have left a token here
  end
  return n + 1
end

-- What most messages are: a table without a metatable, of texts, numbers and booleans under text keys. Appends
-- its keys and values in one pass, and returns the new length and how many of `left` bytes there are still; nil
-- for any other, and for one of more than `count` keys and values.
local function append_pairs(value, out, n, left, count)
  local metatable_of, STRING, last = metatable_of, STRING, n + count
  if metatable_of(value) then -- also of a frozen one
    return nil
  end
  for key, item in next, value do
    -- Of a text, its metatable is told twice as fast as its type.
    if metatable_of(item) == STRING then
      left = left - #item
    else
      local kind = type(item)
      if kind ~= "number" and kind ~= "boolean" then
        return nil
      end
    end
    if metatable_of(key) ~= STRING then
      return nil
    end
    left = left - #key
    if left < 0 or n >= last then
      return nil
    end
    out[n + 1], out[n + 2] = key, item
    n = n + 2
  end
  return n, left
end

S.append_pairs = append_pairs

local function flatten_plain(value, out, n)
  local last, left = append_pairs(value, out, n + 2, room, huge)
  if not last or last == n + 2 then
    return nil
  end
  room = left
  out[n + 1], out[n + 2] = OBJECT, (last - n - 2) // 2
  return last
end

-- Appends `value` to `out` after position n; returns the new length, or nil and why it cannot be encoded.
-- `limit` is of bytes, that of a body where there is none.
function S.flatten(value, out, n, limit)
  local kind = type(value)
  if kind == "number" or kind == "boolean" or value == nil then
    out[n + 1] = value
    return n + 1
  end
  most = limit or MAX_BODY
  room = most
  local length = kind == "table" and flatten_plain(value, out, n)
  if length then
    return length
  end
  local ok, result = pcall(flatten, value, out, n, 0, {})
  if ok then
    return result
  elseif rawequal(result, refuse) then
    return nil, refusal
  end
  error(result, 0)
end

-- Appends the string-keyed entries of `value` as an object; what cannot be encoded becomes `<why>`, and
-- entries beyond MAX_FIELDS bytes are left out.
function S.flatten_fields(value, out, n)
  local left = MAX_FIELDS
  out[n + 1] = OBJECT
  local at, count = n + 2, 0
  n = at
  if value then
    for key, item in next, value do
      if type(key) == "string" and #key < left then
        left = left - #key
        room = left
        local length, why = S.flatten(item, out, n + 1, left)
        if not length then
          room = left
          out[n + 2] = "<" .. why .. ">"
          length = n + 2
        end
        out[n + 1] = key
        left = room - TOKEN * (length - n)
        n, count = length, count + 1
      end
    end
  end
  out[at] = count
  return n
end

-- Calls `send(..., tokens)`, having fed Python all but the last CHUNK tokens before.
function S.with_tokens(out, n)
  local first = 1
  while n - first >= CHUNK do
    call(feed, unpack(out, first, first + CHUNK - 1))
    first = first + CHUNK
  end
  return unpack(out, first, n)
end

local copy

local function copy_table(value, depth, seen)
  if seen[value] then
    refuse("cannot copy recursive nesting (a table that contains itself)")
  elseif depth >= MAX_DEPTH then
    refuse("cannot copy beyond the maximum depth of " .. MAX_DEPTH)
  end
  seen[value] = true
  local result = rawequal(metatable_of(value), empty_object) and S.new_object() or {}
  for key, item in next, frozen[value] or value do
    local kind = type(key)
    if kind ~= "string" and kind ~= "number" and kind ~= "boolean" then
      refuse("cannot copy a table with a key of type " .. kind)
    end
    result[key] = copy(item, depth + 1, seen)
  end
  seen[value] = nil
  return result
end

function copy(value, depth, seen)
  local kind = type(value)
  if kind == "string" or kind == "number" or kind == "boolean" or kind == "userdata" then
    return value
  elseif kind == "table" and not opaque[metatable_of(value)] then
    return copy_table(value, depth, seen)
  end
  return nil
end

-- A deep copy of plain data and error objects, all else becomes nil: true and it, or false and why not.
function S.copy(value)
  if type(value) ~= "table" then
    return true, copy(value)
  end
  local ok, result = pcall(copy, value, 0, {})
  if not ok and rawequal(result, refuse) then
    return false, refusal
  elseif not ok then
    error(result, 0)
  end
  return true, result
end
