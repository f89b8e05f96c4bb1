-- Lua patterns that can be stopped: Lua's matcher backtracks inside one C call, which no hook interrupts.
-- A pattern is analysed once: how many steps Lua's own matcher can take at most on a subject of n bytes.
-- Where that is bearable, `prelude/strings.lua` calls it; where not, the matcher below runs, in Lua.
local S = ...

local find, gsub, sub, byte = string.find, string.gsub, string.sub, string.byte
local error, type, ipairs, next, pcall = error, type, ipairs, next, pcall

local CHEAP = 1000000 -- steps in one C call that need no look at the clock; some 3 ms
local LIMIT = S.limits.pattern_steps -- steps that one C call may take at all; some 0.3 s
local MAX_CACHED = 256 -- patterns; a longer one than MAX_CACHED bytes is analysed each time
local MAX_CAPTURES = 32

local ALL = ""
for code = 0, 255 do
  ALL = ALL .. string.char(code)
end

-- Parsing --------------------------------------------------------------------------------------------

local function malformed(text)
  error({ malformed = text }, 0)
end

-- The end of the single class that begins at `at`.
local function class_end(p, at)
  local first = sub(p, at, at)
  if first == "%" then
    if at == #p then
      malformed("malformed pattern (ends with '%')")
    end
    return at + 1
  elseif first ~= "[" then
    return at
  end
  at = at + 1
  if sub(p, at, at) == "^" then
    at = at + 1
  end
  repeat
    if at > #p then
      malformed("malformed pattern (missing ']')")
    end
    at = at + (sub(p, at, at) == "%" and 2 or 1)
  until sub(p, at, at) == "]"
  return at
end

local sets = {} -- class text -> the bytes outside of it
local known_sets = 0

local function outside(class)
  local others = sets[class]
  if not others then
    others = gsub(ALL, class, "")
    if known_sets >= MAX_CACHED then
      sets, known_sets = {}, 0
    end
    if #class <= MAX_CACHED then
      sets[class], known_sets = others, known_sets + 1
    end
  end
  return others
end

local function disjoint(one, other)
  local outer = outside(one)
  return #outer - #gsub(outer, other, "") == #ALL - #outside(other)
end

local SUFFIXES = { ["*"] = "star", ["+"] = "plus", ["-"] = "minus", ["?"] = "option" }

local function literal_class(char)
  return find(char, "%W") and "%" .. char or char
end

local function add_class(program, p, at)
  local last = class_end(p, at)
  local class = sub(p, at, last)
  if #class == 1 and class ~= "." then
    class = literal_class(class)
  end
  local op = SUFFIXES[sub(p, last + 1, last + 1)]
  program[#program + 1] = {
    op = op or "single",
    class = class,
    one = "^" .. class,
    run = "^" .. class .. "*",
  }
  return op and last + 2 or last + 1
end

local function add_escape(program, p, at)
  local kind = sub(p, at + 1, at + 1)
  if kind == "b" then
    if at + 3 > #p then
      malformed("malformed pattern (missing arguments to '%b')")
    end
    local class = literal_class(sub(p, at + 2, at + 2))
    program[#program + 1] = { op = "balance", one = "^" .. sub(p, at, at + 3), class = class }
    return at + 4
  elseif kind == "f" then
    if sub(p, at + 2, at + 2) ~= "[" then
      malformed("missing '[' after '%f' in pattern")
    end
    local last = class_end(p, at + 2)
    program[#program + 1] = { op = "frontier", one = "^" .. sub(p, at, last) }
    return last + 1
  end
  local index = byte(kind) - 48
  if not program.closed[index] then
    malformed("invalid capture index %" .. index)
  end
  program[#program + 1] = { op = "back", index = index }
  return at + 2
end

local function add_open(program, p, at)
  program.captures = program.captures + 1
  if program.captures > MAX_CAPTURES then
    malformed("too many captures")
  end
  local index = program.captures
  if sub(p, at + 1, at + 1) == ")" then
    program[#program + 1] = { op = "position", index = index }
    program.closed[index] = true
    return at + 2
  end
  program[#program + 1] = { op = "open", index = index }
  program.opened[#program.opened + 1] = index
  return at + 1
end

local function add_close(program, at)
  local index = program.opened[#program.opened]
  if not index then
    malformed("invalid pattern capture")
  end
  program.opened[#program.opened] = nil
  program.closed[index] = true
  program[#program + 1] = { op = "close", index = index }
  return at + 1
end

-- `literal`: a `^` at the start is no anchor (gmatch).
local function parse(p, literal)
  local program = { captures = 0, opened = {}, closed = {}, anchored = false }
  local at = 1
  if sub(p, 1, 1) == "^" and not literal then
    program.anchored, at = true, 2
  end
  while at <= #p do
    local char = sub(p, at, at)
    if char == "(" then
      at = add_open(program, p, at)
    elseif char == ")" then
      at = add_close(program, at)
    elseif char == "$" and at == #p then
      program[#program + 1] = { op = "finish" }
      at = at + 1
    elseif char == "%" and find(p, "^[bf%d]", at + 1) then
      at = add_escape(program, p, at)
    else
      at = add_class(program, p, at)
    end
  end
  if #program.opened > 0 then
    malformed("unfinished capture")
  end
  return program
end

-- Analysis -------------------------------------------------------------------------------------------

local REPEATS = { star = true, plus = true, minus = true }
local OPTIONAL = { star = true, minus = true, option = true }
local MARKS = { open = true, close = true, position = true }

-- Whether giving back what the repetition at `index` took fails at once, wherever it gives back.
local function is_tame(program, index)
  local class = program[index].class
  for following = index + 1, #program do
    local node = program[following]
    if node.op == "finish" then
      return true
    elseif node.op == "back" or node.op == "frontier" then
      return false
    elseif node.class then
      if not disjoint(class, node.class) then
        return false
      elseif not OPTIONAL[node.op] then
        return true
      end
    end
  end
  return true
end

-- Whether a match that has begun cannot fail any more, so that no start costs more than a step.
local function is_sure(program)
  local begun = false
  for _, node in ipairs(program) do
    if OPTIONAL[node.op] or (not begun and (node.op == "single" or node.op == "plus")) then
      begun = true
    elseif not MARKS[node.op] then
      return false
    end
  end
  return true
end

local function weigh(program)
  local wild, doubtful, linear, size = 0, 0, 0, 1
  for index, node in ipairs(program) do
    size = size + 1
    if REPEATS[node.op] or node.op == "option" then
      node.tame = is_tame(program, index)
      if node.tame then
        linear = linear + 1
      elseif node.op == "option" then
        doubtful = doubtful + 1
      else
        wild = wild + 1
      end
    elseif node.op == "balance" or node.op == "back" then
      linear = linear + 1
    end
  end
  return wild, doubtful, linear, size
end

-- The steps of Lua's matcher on n bytes: the starts, the ways to share bytes between the repetitions that
-- can take from each other, and the work on each way.
local function steps(program, n, wild, doubtful, linear, size)
  if is_sure(program) then
    return n * size
  end
  local ways = 2.0 ^ doubtful
  for index = 1, wild do
    ways = ways * (n + index) / index
  end
  return ways * (size + 2.0 * n * linear) * (program.anchored and 1 or n)
end

local function analyse(p, literal)
  local program = parse(p, literal)
  local wild, doubtful, linear, size = weigh(program)
  local n = 1
  program.cheap, program.most = 0, 0
  while n < 2 ^ 40 do
    local count = steps(program, n, wild, doubtful, linear, size)
    if count > LIMIT then
      break
    end
    program.most = n
    if count <= CHEAP then
      program.cheap = n
    end
    n = n * 2
  end
  return program
end

-- Matching -------------------------------------------------------------------------------------------

local advance

local function take_most(program, index, node, s, at, caps)
  local _, last = find(s, node.run, at)
  local least = node.op == "plus" and at + 1 or at
  for stop = last + 1, least, -1 do
    local done = advance(program, index + 1, s, stop, caps)
    if done or node.tame then
      return done
    end
  end
end

local function take_least(program, index, node, s, at, caps)
  while true do
    local done = advance(program, index + 1, s, at, caps)
    if done or not find(s, node.one, at) then
      return done
    end
    at = at + 1
  end
end

local function same(s, at, caps, index)
  if caps[-index] == 0 then
    return nil
  end
  local text = sub(s, caps[index], caps[-index] - 1)
  return sub(s, at, at + #text - 1) == text and at + #text
end

-- Where the match of the program from `index` on, at `at`, ends: the place after it, or nil. The start of
-- capture i is in caps[i], the place after its end in caps[-i], which is 0 for a position.
function advance(program, index, s, at, caps)
  local node = program[index]
  while node do
    local op = node.op
    if op == "star" or op == "plus" then
      return take_most(program, index, node, s, at, caps)
    elseif op == "minus" then
      return take_least(program, index, node, s, at, caps)
    elseif op == "option" then
      local done = find(s, node.one, at) and advance(program, index + 1, s, at + 1, caps)
      if done then
        return done
      end
    elseif op == "open" then
      caps[node.index] = at
    elseif op == "close" then
      caps[-node.index] = at
    elseif op == "position" then
      caps[node.index], caps[-node.index] = at, 0
    elseif op == "finish" then
      return at == #s + 1 and at or nil
    else
      if op == "back" then
        at = same(s, at, caps, node.index)
      else
        local first, last = find(s, node.one, at)
        at = first and last + 1
      end
      if not at then
        return nil
      end
    end
    index = index + 1
    node = program[index]
  end
  return at
end

-- The first match of the program at `at` or after it: start, place after its end, captures; or nil. An
-- empty match at `avoid` does not count.
local function search(program, s, at, avoid)
  local caps = {}
  local lead = program[1]
  local jump = lead and (lead.op == "single" or lead.op == "plus") and lead.class
  repeat
    if jump and not program.anchored then
      at = find(s, jump, at)
      if not at then
        return nil
      end
    end
    local done = advance(program, 1, s, at, caps)
    if done and done ~= avoid then
      return at, done, caps
    elseif lead and lead.op == "plus" and lead.tame and not done then
      -- Every start in this run of bytes comes to the same end of the run, and fails there.
      local _, last = find(s, lead.run, at)
      at = last
    end
    at = at + 1
  until at > #s + 1 or program.anchored
end

local caches, cached = { {}, {} }, 0

local function remember(cache, p, program)
  if #p > MAX_CACHED then
    return
  elseif cached >= MAX_CACHED then
    for _, full in ipairs(caches) do
      for key in next, full do
        full[key] = nil
      end
    end
    cached = 0
  end
  cache[p], cached = program, cached + 1
end

-- The analysed pattern, or nil and what is wrong with it.
local function prepare(p, literal)
  local cache = caches[literal and 2 or 1]
  local program = cache[p]
  if program then
    return program
  end
  local ok, result = pcall(analyse, p, literal)
  if ok then
    remember(cache, p, result)
    return result
  elseif type(result) == "table" and result.malformed then
    return nil, result.malformed
  end
  error(result, 0)
end

-- `cache` has the programs of patterns seen before, for those in a hurry.
S.patterns = { prepare = prepare, search = search, cache = caches[1] }
