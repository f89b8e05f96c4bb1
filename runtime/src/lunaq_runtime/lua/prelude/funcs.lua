-- Calling the functions of the same entries document: `funcs`, `ctx` and `payload` (lua-api.md 3.9).
-- A call is a run of its own in this state: with its own globals, its own copies of what goes in and comes
-- out, and within the caller's message, time and memory.
local S = ...

local type, next, error, setmetatable = type, next, error, setmetatable
local pack, unpack, find = table.pack, table.unpack, string.find
local call, host, fail, copy, is_error = S.call, S.host, S.fail, S.copy, S.is_error

local functions = S.functions -- ID -> what lua/state.py says of it, and `handler` once it is loaded

local function check(id)
  if id == nil or id == "" then
    return "function ID required"
  elseif type(id) ~= "string" then
    return "function ID must be a string, not a " .. type(id)
  elseif not find(id, "^[^:]+:.") then
    return "function ID '" .. id .. "' needs a namespace and a name, such as app:resize"
  elseif not call(host.can, "funcs.call", id) then
    return "not allowed: funcs.call on " .. id, "PermissionDenied"
  elseif not functions[id] then
    return "function not found: " .. id .. " is not a function of this document", "NotFound"
  end
end

local function handler_of(id)
  local spec = functions[id]
  if not spec.handler then
    local ok, value = S.run_within(function()
      return S.load_function(spec)
    end)
    if not ok then
      error("function " .. id .. " does not load: " .. S.text(value), 0)
    end
    spec.handler = value
  end
  return spec.handler
end

-- What a call gives: true and the result, or false and the error, made in the callee's own coroutine.
local function judged(first, second)
  if second ~= nil and (is_error(second) or type(second) == "string") then
    return false, second
  elseif is_error(first) and second == nil then
    return false, first
  end
  local ok, result = copy(first)
  if not ok then
    return false, "the result cannot be handed over: " .. result
  end
  return true, result
end

local function perform(id, arguments)
  return judged(handler_of(id)(unpack(arguments, 1, arguments.n)))
end

-- The error that the caller gets: kind, message, retryable and details of the callee's, or its text.
local function carried(err, retryable)
  if is_error(err) then
    return call(host.copy_error, err)
  end
  return S.new_error(S.text(err), "Internal", retryable)
end

local function copies(...)
  local arguments = pack(...)
  for index = 1, arguments.n do
    local ok, value = copy(arguments[index])
    if not ok then
      return nil, "argument " .. index .. ": " .. value
    end
    arguments[index] = value
  end
  return arguments
end

-- Starts a call; `done(result, err)` is told of its end, once. Returns its task, or nil and an error.
local function begin(done, context, id, ...)
  if not S.delivery() then
    return fail("no context")
  end
  local why, kind = check(id)
  if why then
    return fail(why, kind)
  end
  local arguments, refusal = copies(...)
  if not arguments then
    return fail(refusal)
  end
  local merged = {}
  for key, value in next, S.context() do
    merged[key] = value
  end
  for key, value in next, context do
    merged[key] = value
  end
  return S.start_run(merged, function(ok, success, value)
    if ok and success then
      done(value, nil)
    else
      done(nil, ok and carried(value, false) or carried(success))
    end
  end, perform, id, arguments)
end

-- Calls ----------------------------------------------------------------------------------------------------

local function undo(wait)
  S.kill(wait.callee)
end

local function call_and_wait(context, id, ...)
  local wait = { undo = undo }
  local callee, err = begin(function(result, failure)
    S.ready(wait.caller, true, result, failure)
  end, context, id, ...)
  if not callee then
    return nil, err
  end
  wait.caller, wait.callee = S.current(), callee
  return S.park(wait)
end

local payloads = setmetatable({}, { __mode = "k" }) -- payload -> {value}
local payload_methods = {}
local Payload = S.class("payload.Payload", payload_methods)

function payload_methods.data(payload)
  local held = payloads[payload]
  if not held then
    error("payload:data() needs a payload; call it with a colon", 2)
  end
  return held.value
end

local function new_payload(value)
  local payload = setmetatable({}, Payload)
  payloads[payload] = { value = value }
  return payload
end

local futures = setmetatable({}, { __mode = "k" }) -- future -> its state
local future_methods = {}
local Future = S.class("funcs.Future", future_methods)

local function finish(state, payload, err)
  state.complete, state.payload, state.err = true, payload, err
  if payload then
    state.channel:send(payload)
  end
  state.channel:close()
end

local function call_async(context, id, ...)
  local state = { channel = (S.new_channel(1)) }
  local task, err = begin(function(result, failure)
    finish(state, not failure and new_payload(result) or nil, failure)
  end, context, id, ...)
  if not task then
    return nil, err
  end
  state.task = task
  local future = setmetatable({}, Future)
  futures[future] = state
  return future, nil
end

local function state_of(future, name)
  local state = futures[future]
  if not state then
    error("future:" .. name .. "() needs a future; call it with a colon", 3)
  end
  return state
end

function future_methods.response(future)
  return state_of(future, "response").channel
end

function future_methods.channel(future)
  return state_of(future, "channel").channel
end

function future_methods.is_complete(future)
  return state_of(future, "is_complete").complete == true
end

function future_methods.is_canceled(future)
  return state_of(future, "is_canceled").canceled == true
end

function future_methods.result(future)
  local state = state_of(future, "result")
  return state.payload, state.err
end

function future_methods.error(future)
  local state = state_of(future, "error")
  return state.err, state.err ~= nil
end

function future_methods.cancel(future)
  local state = state_of(future, "cancel")
  if not state.complete then
    state.canceled = true
    S.kill(state.task)
    finish(state, nil, S.new_error("the call was canceled", "Canceled", false))
  end
end

-- Executors ------------------------------------------------------------------------------------------------

local executors = setmetatable({}, { __mode = "k" }) -- executor -> its context values
local executor_methods = {}
local Executor = S.class("funcs.Executor", executor_methods)

local function new_executor(context)
  local executor = setmetatable({}, Executor)
  executors[executor] = context
  return executor, nil
end

local function context_of(executor, name)
  local context = executors[executor]
  if not context then
    error("executor:" .. name .. "() needs an executor of funcs.new(); call it with a colon", 3)
  end
  return context
end

function executor_methods.call(executor, ...)
  return call_and_wait(context_of(executor, "call"), ...)
end

function executor_methods.async(executor, ...)
  return call_async(context_of(executor, "async"), ...)
end

function executor_methods.with_context(executor, values)
  local merged = {}
  for key, value in next, context_of(executor, "with_context") do
    merged[key] = value
  end
  if type(values) ~= "table" then
    S.bad_argument(1, "with_context", "table expected, got " .. type(values))
  elseif not call(host.can, "funcs.context", "") then
    return fail("not allowed: funcs.context", "PermissionDenied")
  end
  local ok, copied = copy(values)
  if not ok then
    return fail(copied)
  end
  for key, value in next, copied do
    if type(key) == "string" then
      merged[key] = value
    end
  end
  return new_executor(merged)
end

function executor_methods.with_options(executor, options)
  local context = context_of(executor, "with_options")
  if type(options) ~= "table" then
    S.bad_argument(1, "with_options", "table expected, got " .. type(options))
  end
  return new_executor(context)
end

function executor_methods.with_actor(executor, actor)
  local context = context_of(executor, "with_actor")
  if not (S.is_actor(actor) and call(host.can, "funcs.security", "")) then
    return fail("not allowed to call as another actor: a consumer has one, security.actor()", "PermissionDenied")
  end
  return new_executor(context)
end

function executor_methods.with_scope(executor)
  context_of(executor, "with_scope")
  return fail("not allowed to call in another scope: a consumer's rights are its policy", "PermissionDenied")
end

S.modules.funcs = {
  call = function(...)
    return call_and_wait({}, ...)
  end,
  async = function(...)
    return call_async({}, ...)
  end,
  new = function()
    return new_executor({})
  end,
}

-- ctx, payload -----------------------------------------------------------------------------------------------

local ctx = {}

function ctx.get(key)
  if type(key) ~= "string" or key == "" then
    return fail("key required")
  end
  local value = S.context()[key]
  if value == nil then
    return fail("no value for key: " .. key, "NotFound")
  end
  local _, copied = copy(value)
  return copied, nil
end

function ctx.all()
  local _, copied = copy(S.context())
  return copied, nil
end

S.modules.ctx = ctx
S.modules.payload = S.readonly("payload", {}, function(name)
  error("payload." .. S.tostring(name) .. " is not available in Lunaq: payloads come from futures", 2)
end)
