-- `require`, the globals a handler is granted, its libraries, and which function the handler is
-- (lua-api.md 2.6). Called by lua/state.py once per state.
local S = ...

local type, error, next, rawget, ipairs = type, error, next, rawget, ipairs
local load, readonly, concat = S.load, S.readonly, table.concat

local views = {} -- name -> the read-only view of a module that handlers get

local function view_of(name)
  local module = S.modules[name]
  if type(module) == "table" and not S.opaque[S.raw_metatable(module)] and next(module) ~= nil then
    views[name] = views[name] or readonly(name, module)
    return views[name]
  end
  return module
end

local function compile(chunk, source, globals)
  local body, message = load(source, "@" .. chunk, "t", globals)
  if not body then
    error(message, 0)
  end
  return body
end

-- What a chunk finds in its globals and through `require`.
local function new_environment(globals)
  local granted = {} -- name -> module
  local libraries = {} -- local name -> {chunk, source, loaded value}
  local environment = { globals = globals }

  function environment.grant(name)
    granted[name] = view_of(name)
    globals[name] = granted[name]
  end

  function environment.add_library(name, chunk, source)
    libraries[name] = { chunk = chunk, source = source }
  end

  function environment.load_library(name)
    local library = libraries[name]
    if library.value ~= nil then
      return library.value
    elseif library.loading then
      error("import cycle: library '" .. name .. "' needs itself", 0)
    end
    library.loading = true
    local value = compile(library.chunk, library.source, globals)()
    library.loading = false
    if value == nil then
      value = rawget(globals, name)
    end
    if value == nil then
      error(library.chunk .. ": the library '" .. name .. "' returns nothing; end it with `return` and its table", 0)
    end
    library.value = value
    globals[name] = value
    return value
  end

  function globals.require(name)
    if type(name) ~= "string" then
      S.bad_argument(1, "require", "string expected, got " .. type(name))
    elseif libraries[name] then
      return environment.load_library(name)
    elseif granted[name] ~= nil then
      return granted[name]
    elseif S.builtin[name] then
      return S.builtin[name]
    end
    error("module '" .. name .. "' not found", 2)
  end

  return environment
end

local function resolve(value, method, globals)
  local names = method ~= "" and { method } or { "handle", "handler", "main" }
  if type(value) == "function" then
    return value
  elseif value ~= nil and type(value) ~= "table" then
    error("no handler: the chunk returns a " .. type(value) .. "; return a function, or a table of functions", 0)
  end
  for _, name in ipairs(names) do
    local found = rawget(value or globals, name)
    if type(found) == "function" then
      return found
    end
  end
  local where = value and "the table that the chunk returns has no function '" or "there is no global function '"
  error("no handler: " .. where .. concat(names, "' or '") .. "'; define it, or set `method`", 0)
end

local function load_chunk(environment, chunk, source, method)
  return resolve(compile(chunk, source, environment.globals)(), method, environment.globals)
end

S.builtin = {
  errors = readonly("errors", S.modules.errors),
  process = S.process,
  channel = readonly("channel", S.modules.channel),
}
for _, name in ipairs({ "string", "table", "math", "coroutine", "os", "utf8" }) do
  S.builtin[name] = _G[name]
end
_G.errors, _G.channel = S.builtin.errors, S.builtin.channel

-- Handlers and functions get globals of their own. In Lua's, lupa looks up `debug.traceback` whenever Python
-- calls a function, on a thread without a hook and outside any protection: nothing of a handler may be there.
local pristine = {} -- the globals of each, before its modules are granted
for name, value in next, _G do
  pristine[name] = value
end

local function new_globals()
  local globals = {}
  for name, value in next, pristine do
    globals[name] = value
  end
  globals._G = globals
  return globals
end

local own = new_environment(new_globals())
S.grant, S.add_library = own.grant, own.add_library

-- Loads libraries in the order given, then the chunk: true, or false and what went wrong.
function S.load_handler(chunk, source, method, ...)
  local order = { ... }
  return S.run(function()
    for _, name in ipairs(order) do
      own.load_library(name)
    end
    S.handler = load_chunk(own, chunk, source, method)
  end)
end

-- Loads a function of the document (lua/state.py describes it) into globals of its own.
function S.load_function(spec)
  local environment = new_environment(new_globals())
  for _, name in ipairs(spec.modules) do
    environment.grant(name)
  end
  for _, library in ipairs(spec.imports) do
    environment.add_library(library.name, library.chunk, library.source)
  end
  for _, library in ipairs(spec.imports) do
    environment.load_library(library.name)
  end
  return load_chunk(environment, spec.chunk, spec.source, spec.method)
end
