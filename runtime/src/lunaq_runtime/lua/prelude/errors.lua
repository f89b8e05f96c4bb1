-- The `errors` table and the methods of error objects (lua-api.md 3.1).
-- An error object is Python's HandlerError; every userdata a handler can hold is one.
local S = ...

local type, error, next, tostring, concat = type, error, next, tostring, table.concat
local call, host, getinfo, bad_argument = S.call, S.host, S.getinfo, S.bad_argument

local function is_error(value)
  return type(value) == "userdata"
end
S.is_error = is_error

-- The Lua stack above the prelude, one line per frame.
function S.frames(level)
  local lines = {}
  for depth = level, level + 15 do
    local info = getinfo(depth, "Sln")
    if not info then
      break
    end
    if info.short_src ~= "[lunaq]" and info.currentline > 0 then -- neither of C nor of serve.lua
      lines[#lines + 1] = info.short_src .. ":" .. info.currentline .. ": in " .. (info.name or info.what)
    end
  end
  return concat(lines, "\n")
end

function S.new_error(message, kind, retryable)
  return call(host.make_error, message, kind, retryable, S.frames(3))
end

-- What most failing calls return: nil and an error that is not worth a retry.
function S.fail(message, kind)
  return nil, call(host.make_error, message, kind or "Invalid", false, S.frames(3))
end

-- What a callback that answers (lua/modules) returns, as a handler gets it.
function S.answer(ok, result)
  if ok then
    return result, nil
  end
  return nil, result
end

local methods = {}
for name, reader in next, {
  message = host.error_message,
  kind = host.error_kind,
  retryable = host.error_retryable,
  details = host.error_details,
  stack = host.error_stack,
} do
  methods[name] = function(err)
    if not is_error(err) then
      error("err:" .. name .. "() needs an error object; call it with a colon", 2)
    end
    return call(reader, err)
  end
end

local function text(value)
  if is_error(value) then
    return call(host.error_message, value)
  end
  return value
end

S.text = text

local metatable = S.error_metatable
metatable.__index = methods
S.classes.error = methods
metatable.__tostring = text
metatable.__newindex = function()
  error("an error object is read-only", 2)
end
metatable.__concat = function(left, right)
  return text(left) .. text(right)
end

local kinds = S.kinds

local function from_table(spec)
  local message = spec.message
  if message == nil then
    bad_argument(1, "new", "message field is required", 2)
  elseif type(message) ~= "string" then
    bad_argument(1, "new", "message must be a string", 2)
  end
  local kind, retryable, details = spec.kind, spec.retryable, spec.details
  if type(kind) ~= "string" then
    kind = ""
  end
  if type(retryable) ~= "boolean" then
    retryable = nil
  end
  local out = {}
  local n = S.flatten_fields(type(details) == "table" and details or nil, out, 0)
  return call(host.make_error, message, kind, retryable, S.frames(3), S.with_tokens(out, n))
end

local function named_kind(first, second)
  if type(second) ~= "string" then
    return nil
  end
  for name, value in next, kinds do
    if first == name or (first == value and value ~= "") then
      return value
    end
  end
end

local errors = {}
for name, value in next, kinds do
  errors[name] = value
end

function errors.new(first, second)
  if type(first) == "string" then
    local kind = named_kind(first, second)
    if kind then
      return call(host.make_error, second, kind, nil, S.frames(3))
    end
    return call(host.make_error, first, "", nil, S.frames(3))
  elseif type(first) == "table" then
    return from_table(first)
  end
  bad_argument(1, "new", "expected string or table")
end

function errors.wrap(parent, context)
  if not (is_error(parent) or type(parent) == "string") then
    bad_argument(1, "wrap", "expected error or string")
  elseif not (is_error(context) or type(context) == "string") then
    bad_argument(2, "wrap", "expected string or error")
  end
  return call(host.wrap_error, parent, text(context), S.frames(3))
end

function errors.is(value, kind)
  if type(kind) ~= "string" then
    bad_argument(2, "is", "string expected, got " .. type(kind))
  end
  return is_error(value) and call(host.error_kind, value) == kind
end

function errors.call_stack(err)
  if not is_error(err) then
    bad_argument(1, "call_stack", "error expected, got " .. type(err))
  end
  return call(host.error_call_stack, err)
end

S.modules.errors = errors
