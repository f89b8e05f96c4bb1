-- The small modules: logger, json, env, uuid, security, os, process (lua-api.md section 3).
local S = ...

local type, next, error, tostring, concat, pack = type, next, error, tostring, table.concat, table.pack
local setmetatable, ipairs = setmetatable, ipairs
local call, host, fail, getinfo = S.call, S.host, S.fail, S.getinfo

-- logger ---------------------------------------------------------------------------------------------

local loggers = setmetatable({}, { __mode = "k" }) -- logger -> {name, permanent fields}
local logger_methods = {}
local Logger = S.class("logger", logger_methods)

local function new_logger(name, fields)
  local logger = setmetatable({}, Logger)
  loggers[logger] = { name = name, fields = fields }
  return logger
end

local function state_of(logger, name)
  local state = loggers[logger]
  if not state then
    error("logger:" .. name .. "() is called with a colon, not with a dot", 3)
  end
  return state
end

local function merged(permanent, fields)
  local all = {}
  for key, value in next, permanent do
    all[key] = value
  end
  for key, value in next, fields or {} do
    if type(key) == "string" then
      all[key] = value
    end
  end
  return all
end

local function emit(level, message, name, fields, depth)
  local info = getinfo(depth, "Sl")
  local location = info and info.short_src .. ":" .. info.currentline or ""
  local out = {}
  local n = S.flatten_fields(fields, out, 0)
  call(host.log, level, message, name, location, S.with_tokens(out, n))
end

for _, level in ipairs({ "debug", "info", "warn", "error" }) do
  logger_methods[level] = function(logger, message, fields)
    local state = state_of(logger, level)
    if type(message) ~= "string" then
      S.bad_argument(1, level, "string expected, got " .. type(message))
    elseif fields ~= nil and type(fields) ~= "table" then
      S.bad_argument(2, level, "table expected, got " .. type(fields))
    end
    emit(level, message, state.name, merged(state.fields, fields), 3)
  end
end

logger_methods["with"] = function(logger, fields)
  local state = state_of(logger, "with")
  if type(fields) ~= "table" then
    S.bad_argument(1, "with", "table expected, got " .. type(fields))
  end
  return new_logger(state.name, merged(state.fields, fields))
end

function logger_methods.named(logger, name)
  local state = state_of(logger, "named")
  if type(name) ~= "string" or name == "" then
    S.bad_argument(1, "named", "non-empty string expected")
  end
  return new_logger(state.name == "" and name or state.name .. "." .. name, state.fields)
end

S.modules.logger = new_logger("", {})

function print(...)
  local parts = pack(...)
  for index = 1, parts.n do
    parts[index] = tostring(parts[index])
  end
  emit("info", concat(parts, " "), "", nil, 3)
end

-- json -----------------------------------------------------------------------------------------------

local json = {}

function json.encode(value)
  local out = {}
  local n, why = S.flatten(value, out, 0)
  if not n then
    return fail(why, "Internal")
  end
  local ok, result = call(host.json_encode, S.with_tokens(out, n))
  if ok then
    return result, nil
  end
  return nil, result
end

function json.decode(text)
  if type(text) ~= "string" then
    return fail("string expected")
  elseif text == "" then
    return fail("empty string is not valid JSON")
  end
  local ok, result = call(host.json_decode, text)
  if ok then
    return result, nil
  end
  return nil, result
end

local function refused(reason)
  local _, err = fail(reason)
  return false, err
end

local function validated(schema, text)
  if type(schema) == "table" then
    local encoded, err = "{}", nil
    if next(schema) ~= nil then
      encoded, err = json.encode(schema)
    end
    if not encoded then
      return refused("the schema cannot be JSON: " .. err:message())
    end
    schema = encoded
  elseif type(schema) ~= "string" or schema == "" then
    return refused("schema required: a table or JSON text")
  end
  local ok, result = call(host.json_validate, schema, text)
  if ok then
    return true, nil
  end
  return false, result
end

function json.validate(schema, value)
  if schema == nil or value == nil then
    return refused(schema == nil and "schema required: a table or JSON text" or "value required")
  end
  local text, err = json.encode(value)
  if not text then
    return refused("the value cannot be JSON: " .. err:message())
  end
  return validated(schema, text)
end

function json.validate_string(schema, text)
  if type(text) ~= "string" then
    return refused("string expected")
  elseif text == "" then
    return refused("empty string is not valid JSON")
  end
  return validated(schema, text)
end

S.modules.json = json

-- env ------------------------------------------------------------------------------------------------

local env = {}
local variables = S.env

function env.get(key)
  if type(key) ~= "string" or key == "" then
    return fail("environment variable name required")
  end
  if not call(host.can, "env.get", key) then
    return fail("not allowed: env.get on " .. key, "PermissionDenied")
  end
  local value = variables[key]
  if value == nil then
    return fail("environment variable not found: " .. key, "NotFound")
  end
  return value, nil
end

function env.set(key, value)
  if type(key) ~= "string" or key == "" then
    return fail("environment variable name required")
  elseif type(value) ~= "string" then
    return fail("environment variable value must be a string")
  elseif not call(host.can, "env.set", key) then
    return fail("not allowed: env.set on " .. key, "PermissionDenied")
  end
  variables[key] = value
  return true, nil
end

function env.get_all()
  local visible = {}
  for key, value in next, variables do
    if call(host.can, "env.get", key) then
      visible[key] = value
    end
  end
  return visible, nil
end

S.modules.env = env

-- uuid, security -------------------------------------------------------------------------------------

local uuid = {}
for _, name in ipairs({ "v1", "v3", "v4", "v5", "v7", "version", "variant", "parse", "format" }) do
  local implementation = host["uuid_" .. name]
  uuid[name] = function(first, second)
    -- Only texts cross over: handing a table to Python would need memory where there may be none.
    first = type(first) == "string" and first or nil
    second = type(second) == "string" and second or nil
    local ok, result = call(implementation, first, second)
    if ok then
      return result, nil
    end
    return nil, result
  end
end

function uuid.validate(value)
  return type(value) == "string" and call(host.uuid_validate, value)
end

S.modules.uuid = uuid

local security = {}

function security.can(action, resource)
  if type(action) ~= "string" then
    S.bad_argument(1, "can", "string expected, got " .. type(action))
  end
  return call(host.can, action, type(resource) == "string" and resource or "")
end

function security.scope()
  return nil
end

local actor_methods = {}
local Actor = S.class("security.Actor", actor_methods)
function actor_methods.id()
  return S.actor_id
end
function actor_methods.meta()
  return {}
end
function security.actor()
  return setmetatable({}, Actor)
end
function S.is_actor(value)
  return S.raw_metatable(value) == Actor
end

S.modules.security = security

-- os, process ----------------------------------------------------------------------------------------

local time, date = os.time, os.date
S.os = { clock = os.clock, date = date, difftime = os.difftime, platform = "lunaq" }

function S.os.time(spec)
  if spec == nil then
    return time()
  elseif type(spec) ~= "table" then
    S.bad_argument(1, "time", "table expected, got " .. type(spec))
  end
  local today = date("*t")
  return time({
    year = spec.year or today.year,
    month = spec.month or today.month,
    day = spec.day or today.day,
    hour = spec.hour or 0,
    min = spec.min or 0,
    sec = spec.sec or 0,
    isdst = spec.isdst,
  })
end

S.process = S.readonly("process", {}, function(name)
  return function()
    return fail("process." .. tostring(name) .. " is not available in Lunaq", "Unavailable")
  end
end)
