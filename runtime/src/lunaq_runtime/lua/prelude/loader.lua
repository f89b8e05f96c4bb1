-- `require`, the globals a handler is granted, its libraries, and which function the handler is
-- (lua-api.md 2.6). Called by lua/state.py once per state.
local S = ...

local type, error, next, rawget, ipairs = type, error, next, rawget, ipairs
local load, readonly, concat = S.load, S.readonly, table.concat

local granted = {} -- name -> module
local libraries = {} -- local name -> {chunk, source, loaded value}
local planned = {} -- granted, but not in this version

local function not_available(name)
  return "module '" .. name .. "' is not available in this version of Lunaq"
end

function S.grant(name)
  local module = S.modules[name]
  if module == nil then
    planned[name] = true
    _G[name] = readonly(name, {}, function()
      error(not_available(name), 2)
    end)
    return
  end
  if type(module) == "table" and not S.opaque[S.raw_metatable(module)] and next(module) ~= nil then
    module = readonly(name, module)
  end
  granted[name] = module
  _G[name] = module
end

function S.add_library(name, chunk, source)
  libraries[name] = { chunk = chunk, source = source }
end

local function compile(chunk, source)
  local body, message = load(source, "@" .. chunk, "t")
  if not body then
    error(message, 0)
  end
  return body
end
S.compile = compile

local function load_library(name)
  local library = libraries[name]
  if library.value ~= nil then
    return library.value
  elseif library.loading then
    error("import cycle: library '" .. name .. "' needs itself", 0)
  end
  library.loading = true
  local value = compile(library.chunk, library.source)()
  library.loading = false
  if value == nil then
    value = rawget(_G, name)
  end
  if value == nil then
    error(library.chunk .. ": the library '" .. name .. "' returns nothing; end it with `return` and its table", 0)
  end
  library.value = value
  _G[name] = value
  return value
end

function require(name)
  if type(name) ~= "string" then
    S.bad_argument(1, "require", "string expected, got " .. type(name))
  elseif libraries[name] then
    return load_library(name)
  elseif granted[name] ~= nil then
    return granted[name]
  elseif planned[name] or (S.all_granted and S.known[name] and S.modules[name] == nil) then
    error(not_available(name), 2)
  elseif S.builtin[name] then
    return S.builtin[name]
  end
  error("module '" .. name .. "' not found", 2)
end

local function resolve(value, method)
  local names = method ~= "" and { method } or { "handle", "handler", "main" }
  if type(value) == "function" then
    return value
  elseif value ~= nil and type(value) ~= "table" then
    error("no handler: the chunk returns a " .. type(value) .. "; return a function, or a table of functions", 0)
  end
  for _, name in ipairs(names) do
    local found = rawget(value or _G, name)
    if type(found) == "function" then
      return found
    end
  end
  local where = value and "the table that the chunk returns has no function '" or "there is no global function '"
  error("no handler: " .. where .. concat(names, "' or '") .. "'; define it, or set `method`", 0)
end

-- Loads libraries in the order given, then the chunk: true, or false and what went wrong.
function S.load_handler(chunk, source, method, ...)
  local order = { ... }
  return S.run(function()
    for _, name in ipairs(order) do
      load_library(name)
    end
    local result = compile(chunk, source)()
    S.handler = resolve(result, method)
  end)
end

S.builtin = {
  errors = readonly("errors", S.modules.errors),
  process = S.process,
}
for _, name in ipairs({ "string", "table", "math", "coroutine", "os", "utf8" }) do
  S.builtin[name] = _G[name]
end
_G.errors = S.builtin.errors
