-- The string functions that can take long in one C call, with a bound on how long; the rest is Lua's own.
-- Every wrapper goes to Lua's function at once where the work is small.
local S = ...

local find, match, gmatch, gsub = string.find, string.match, string.gmatch, string.gsub
local sub, rep, upper, lower, reverse = string.sub, string.rep, string.upper, string.lower, string.reverse
local pack, unpack, packsize = string.pack, string.unpack, string.packsize
local type, error, mathtype, tointeger, tostring = type, error, math.type, math.tointeger, tostring
local concat, table_unpack, select, ipairs, next = table.concat, table.unpack, select, ipairs, next
local look, bad_argument = S.look, S.bad_argument
local prepare, search, cache = S.patterns.prepare, S.patterns.search, S.patterns.cache

local BIG = 65536 -- bytes of work in one C call after which the clock is looked at
local LONG = 256 -- bytes of a pattern that is worth asking whether it is one
local PLAIN = 64 -- bytes of a plain text that are searched for in C, whatever the subject
local PLAIN_LIMIT = 100000000 -- bytes compared at most by one plain search in C

local function text(value, position, name)
  if type(value) == "string" then
    return value
  elseif type(value) == "number" then
    return tostring(value)
  end
  bad_argument(position, name, "string expected, got " .. type(value), 3)
end

local function integer(value, position, name, level)
  local number = tointeger(value)
  if not number then
    local what = type(value) == "number" and "number has no integer representation"
      or "number expected, got " .. type(value)
    bad_argument(position, name, what, level or 3)
  end
  return number
end

-- The place in a subject of `size` bytes where a search with `init` begins.
local function place(init, size, name)
  if init == nil then
    return 1
  end
  local at = integer(init, 3, name, 4)
  if at < 0 then
    at = size + at + 1
  end
  return at < 1 and 1 or at
end

-- What a match gives: its captures, or all of it where the pattern has none.
local function captured(s, from, to, caps, program)
  local values = {}
  for index = 1, program.captures do
    local stop = caps[-index]
    values[index] = stop == 0 and caps[index] or sub(s, caps[index], stop - 1)
  end
  if program.captures == 0 then
    return sub(s, from, to - 1)
  end
  return table_unpack(values, 1, program.captures)
end

local function analysed(p, literal)
  local program, why = prepare(p, literal)
  if not program then
    error(why, 3)
  end
  return program
end

-- Plain search: a long text is searched for by its beginning, and each place compared in a step of its own.
local function find_plain(s, p, at)
  if at > #s + 1 then
    return nil
  elseif #p <= PLAIN or (#s - at) * #p <= PLAIN_LIMIT then
    local first, last = find(s, p, at, true)
    look()
    return first, last
  end
  local beginning = sub(p, 1, PLAIN)
  while true do
    local first = find(s, beginning, at, true)
    if not first or sub(s, first, first + #p - 1) == p then
      return first, first and first + #p - 1
    end
    at = first + 1
  end
end

local function has_no_specials(p)
  return not find(p, "[%^%$%*%+%?%.%(%)%[%%%-]")
end

local function careful_find(s, p, init, plain)
  s, p = text(s, 1, "find"), text(p, 2, "find")
  local at = place(init, #s, "find")
  if plain or #p > LONG and has_no_specials(p) then
    if #s * #p <= BIG then
      return find(s, p, at, true)
    end
    return find_plain(s, p, at)
  end
  local program = analysed(p)
  if at > #s + 1 then
    return nil
  elseif #s <= program.cheap then
    return find(s, p, at)
  elseif #s <= program.most then
    look()
    return find(s, p, at)
  end
  local from, to, caps = search(program, s, at)
  if not from then
    return nil
  elseif program.captures == 0 then
    return from, to - 1
  end
  return from, to - 1, captured(s, from, to, caps, program)
end

function string.find(s, p, init, plain)
  local program = cache[p]
  -- Searching for the same text without its magic costs less.
  if program and type(s) == "string" and #s <= program.cheap then
    return find(s, p, init, plain)
  end
  return careful_find(s, p, init, plain)
end

local function careful_match(s, p, init)
  s, p = text(s, 1, "match"), text(p, 2, "match")
  local at = place(init, #s, "match")
  local program = analysed(p)
  if at > #s + 1 then
    return nil
  elseif #s <= program.cheap then
    return match(s, p, at)
  elseif #s <= program.most then
    look()
    return match(s, p, at)
  end
  local from, to, caps = search(program, s, at)
  if from then
    return captured(s, from, to, caps, program)
  end
  return nil
end

function string.match(s, p, init)
  local program = cache[p]
  if program and type(s) == "string" and #s <= program.cheap then
    return match(s, p, init)
  end
  return careful_match(s, p, init)
end

function string.gmatch(s, p, init)
  s, p = text(s, 1, "gmatch"), text(p, 2, "gmatch")
  local program = cache[p]
  if program and not program.anchored and #s <= program.cheap then
    return gmatch(s, p, init)
  end
  local at = place(init, #s, "gmatch")
  program = analysed(p, sub(p, 1, 1) == "^")
  if #s <= program.most then
    look()
    return gmatch(s, p, at)
  end
  local last
  return function()
    if not at or at > #s + 1 then
      return nil
    end
    local from, to, caps = search(program, s, at, last)
    at, last = to, to
    if from then
      return captured(s, from, to, caps, program)
    end
  end
end
string.gfind = string.gmatch
S.gmatch = gmatch

-- The text that replaces a match, for a replacement text with `%1` in it.
local function expand(replacement, s, from, to, caps, program)
  return (
    gsub(replacement, "%%(.?)", function(char)
      if char == "%" then
        return "%"
      elseif char == "0" or (char == "1" and program.captures == 0) then
        return sub(s, from, to - 1)
      end
      local index = tointeger(char)
      if not index then
        error("invalid use of '%' in replacement string", 0)
      elseif index > program.captures then
        error("invalid capture index %" .. index .. " in replacement string", 0)
      end
      return (tostring((select(index, captured(s, from, to, caps, program)))))
    end)
  )
end

local function replaced(s, from, to, caps, program, replacement)
  local kind, value = type(replacement), nil
  if kind == "string" then
    return expand(replacement, s, from, to, caps, program)
  elseif kind == "table" then
    value = replacement[(captured(s, from, to, caps, program))]
  else
    value = replacement(captured(s, from, to, caps, program))
  end
  if not value then
    return sub(s, from, to - 1)
  elseif type(value) ~= "string" and type(value) ~= "number" then
    error("invalid replacement value (a " .. type(value) .. ")", 0)
  end
  return value
end

local function careful_gsub(s, program, replacement, most)
  local out, n, count, at, last = {}, 0, 0, 1, nil
  while count < most do
    local from, to, caps = search(program, s, at, last)
    if not from then
      break
    end
    out[n + 1] = sub(s, at, from - 1)
    out[n + 2] = replaced(s, from, to, caps, program, replacement)
    n, count, at, last = n + 2, count + 1, to, to
    if program.anchored then
      break
    end
  end
  out[n + 1] = sub(s, at)
  return concat(out), count
end

local REPLACEMENTS = { string = true, table = true, ["function"] = true }

function string.gsub(s, p, replacement, most)
  s, p = text(s, 1, "gsub"), text(p, 2, "gsub")
  local program = cache[p]
  if program and #s <= program.cheap then
    return gsub(s, p, replacement, most)
  end
  if type(replacement) == "number" then
    replacement = tostring(replacement)
  elseif not REPLACEMENTS[type(replacement)] then
    bad_argument(3, "gsub", "string/function/table expected, got " .. type(replacement))
  end
  program = analysed(p)
  most = most == nil and #s + 1 or integer(most, 4, "gsub")
  if #s <= program.most then
    look()
    return gsub(s, p, replacement, most)
  end
  return careful_gsub(s, program, replacement, most)
end

function string.rep(s, n, separator)
  if type(s) == "string" and separator == nil and mathtype(n) == "integer" then
    if s == "" then
      return ""
    elseif #s * n > BIG then
      look()
    end
    return rep(s, n)
  end
  s = text(s, 1, "rep")
  separator = separator ~= nil and text(separator, 3, "rep") or ""
  if s == "" and separator == "" then
    return ""
  end
  look()
  return rep(s, integer(n, 2, "rep"), separator)
end

-- Looks at the clock first where the first argument, or the second, is long.
local function watched(library, name, original)
  library[name] = function(first, ...)
    if type(first) ~= "string" or #first > BIG then
      look()
    end
    return original(first, ...)
  end
end
for name, original in next, { upper = upper, lower = lower, reverse = reverse } do
  string[name] = function(s)
    if type(s) ~= "string" or #s > BIG then
      look()
    end
    return original(s)
  end
end
watched(string, "pack", pack)
watched(string, "unpack", unpack)
watched(string, "packsize", packsize)
for _, name in ipairs({ "len", "offset", "codepoint" }) do
  watched(utf8, name, utf8[name])
end
