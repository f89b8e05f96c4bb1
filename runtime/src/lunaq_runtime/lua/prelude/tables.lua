-- The table functions that can take long in one C call: over ranges that no table has, over what
-- metamethods answer, or sorting by slow comparisons. Small work goes to Lua's own function at once.
local S = ...

local concat, insert, remove, move, sort = table.concat, table.insert, table.remove, table.move, table.sort
local type, select, error, mathtype, tointeger = type, select, error, math.type, math.tointeger
local MAXIMUM = math.maxinteger
local look, bad_argument, metatable_of, getinfo = S.look, S.bad_argument, S.raw_metatable, S.getinfo

local BIG = 10000 -- entries of one C call after which the clock is looked at
local LONG = 1024 -- bytes from which on comparing texts is slow

local function is_plain(list)
  return type(list) == "table" and not metatable_of(list)
end

local function checked(list, name)
  if type(list) ~= "table" then
    bad_argument(1, name, "table expected, got " .. type(list), 3)
  end
end

local function integer(value, position, name)
  local number = tointeger(value)
  if not number then
    bad_argument(position, name, "integer expected, got " .. type(value), 3)
  end
  return number
end

-- Entries i to j as a plain table, from 1 on.
local function copied(list, i, j)
  local copy = {}
  for index = i, j do
    copy[index - i + 1] = list[index]
  end
  return copy
end

function table.concat(list, separator, i, j)
  if is_plain(list) then
    -- It fails at the first hole, so it does no more than the table is long.
    if #list > BIG then
      look()
    end
    return concat(list, separator, i, j)
  end
  checked(list, "concat")
  i, j = integer(i or 1, 3, "concat"), integer(j or #list, 4, "concat")
  if i > j then
    return ""
  end
  local count = 0
  for index = i, j do
    local kind = type(list[index])
    if kind ~= "string" and kind ~= "number" then
      error("invalid value (at index " .. index .. ") in table for 'concat'", 2)
    end
    count = count + 1
    if index == j then
      break
    end
  end
  return concat(copied(list, i, j), separator, 1, count)
end

-- Lua's own, step by step: opens a gap at `at`, which must be 1 to #list + 1.
local function insert_slowly(list, at, value)
  local last = #list + 1
  at = integer(at, 2, "insert")
  if at < 1 or at > last then
    bad_argument(2, "insert", "position out of bounds")
  end
  for index = last, at + 1, -1 do
    list[index] = list[index - 1]
  end
  list[at] = value
end

function table.insert(list, ...)
  if select("#", ...) == 2 and type(list) == "table" then
    if metatable_of(list) then
      return insert_slowly(list, ...)
    elseif #list > BIG then
      look()
    end
  end
  return insert(list, ...)
end

function table.remove(list, at, ...)
  if at ~= nil and type(list) == "table" then
    if metatable_of(list) then
      local size = #list
      at = integer(at, 2, "remove")
      if size + 1 ~= at and (at < 1 or at > size + 1) and not (size == 0 and at == 0) then
        bad_argument(2, "remove", "position out of bounds")
      end
      local value = list[at]
      for index = at, size - 1 do
        list[index] = list[index + 1]
      end
      if at <= size then
        list[size] = nil
      end
      return value
    elseif #list > BIG then
      look()
    end
    return remove(list, at, ...)
  end
  return remove(list)
end

function table.move(from, first, last, to, into)
  if mathtype(first) == "integer" and mathtype(last) == "integer" and last - first < BIG and last - first >= -1 then
    return move(from, first, last, to, into)
  end
  checked(from, "move")
  if into ~= nil and type(into) ~= "table" then
    bad_argument(5, "move", "table expected, got " .. type(into))
  end
  into = into or from
  first, last, to = integer(first, 2, "move"), integer(last, 3, "move"), integer(to, 4, "move")
  if last < first then
    return into
  elseif first <= 0 and last >= MAXIMUM + first then
    bad_argument(3, "move", "too many elements to move")
  elseif to > MAXIMUM - (last - first) then
    bad_argument(4, "move", "destination wrap around")
  end
  if to > last or to <= first or into ~= from then
    for offset = 0, last - first do
      into[to + offset] = from[first + offset]
    end
  else
    for offset = last - first, 0, -1 do
      into[to + offset] = from[first + offset]
    end
  end
  return into
end

local function less(left, right)
  return left < right
end

-- Whether Lua's own comparison of these entries is quick.
local function quickly_compared(list, size)
  if size > BIG then
    return false
  end
  for index = 1, size do
    local value = list[index]
    if type(value) == "string" and #value > LONG then
      return false
    end
  end
  return true
end

-- The order as a Lua function, in which the handler can be ended, or nil where Lua's own is quick.
local function order_of(list, size, order)
  if order == nil then
    return not quickly_compared(list, size) and less or nil
  elseif type(order) ~= "function" then
    bad_argument(2, "sort", "function expected, got " .. type(order), 3)
  elseif getinfo(order, "S").what == "C" then
    return function(left, right)
      return order(left, right)
    end
  end
  return order
end

function table.sort(list, order)
  checked(list, "sort")
  local size = #list
  if is_plain(list) then
    return sort(list, order_of(list, size, order))
  end
  local copy = copied(list, 1, size)
  sort(copy, order_of(copy, size, order))
  for index = 1, size do
    list[index] = copy[index]
  end
end
