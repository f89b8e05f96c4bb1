-- Runs a handler as a coroutine that Python drives, and ends it when its time is up.
-- A blocking call yields TOKEN and a request through every coroutine the handler made; no handler can get
-- hold of TOKEN or REPLY, so its own yields and resumes cannot be mistaken for ours.
local S = ...

local coroutine, error, type, rawequal, sub = coroutine, error, type, rawequal, string.sub
local setmetatable = setmetatable
local raw_create, raw_resume, raw_yield = coroutine.create, coroutine.resume, coroutine.yield
local raw_close, running, status = coroutine.close, coroutine.running, coroutine.status
local sethook, traceback, clock, seconds, call = S.sethook, S.traceback, os.clock, os.time, S.call
local interrupted = S.host.interrupted

local TOKEN, REPLY = {}, {}
-- A single instruction can take milliseconds (texts of megabytes compared), so the hook comes often, and
-- looks at the clock only every TURNS times, or when a second has passed.
local COUNT, TURNS = 300, 16
local PATIENCE = 0.01 -- seconds of CPU time between two questions to Python, which need the GIL

local main -- the coroutine of the running handler, or of a chunk being loaded
local ended = false -- its time is up, or it was interrupted; Python knows why
local raises = 0 -- how often that had to be raised
local asked = clock()
local turns, second = 0, 0
-- Made beforehand: at the memory limit, an error that needs memory could not be raised.
local END = call(S.host.make_error, "the handler is being ended", "Canceled", true, "")

-- Ends the handler if its time is up.
local function look()
  if not ended then
    local now = clock()
    if now - asked < PATIENCE and now >= asked then
      return
    end
    asked = now
    ended = call(interrupted)
    if not ended then
      return
    end
  end
  raises = raises + 1
  -- From now on at every instruction, so that no pcall can go on.
  sethook(look, "", 1)
  error(END, 0)
end
S.look = look

local function on_count()
  turns = turns + 1
  local now = seconds()
  if turns < TURNS and now == second and not ended then
    return
  end
  turns, second = 0, now
  look()
end

-- Where memory or a stack is exhausted, the hook itself cannot run and raises this instead of its own
-- error. Whoever could catch it could go on for ever, so these are not to be caught.
local function fatal(err)
  return type(err) == "string"
    and (err == "not enough memory" or err == "error in error handling" or sub(err, -14) == "stack overflow")
end

local function guarded(ok, ...)
  if not ok then
    if ended then
      error(END, 0)
    elseif fatal((...)) then
      error((...), 0)
    end
  end
  return ok, ...
end

local raw_pcall = pcall

local function protected(...)
  return guarded(raw_pcall(...))
end
pcall = protected

local function handled(handler, ok, ...)
  if ok then
    return ok, ...
  end
  -- Lua calls a message handler where the error is raised, and inside a hook no other hook can stop it. So
  -- it is called afterwards; what it raises itself takes the place of the error.
  local _, result = protected(handler, ...)
  return false, result
end

function xpcall(body, handler, ...)
  if type(handler) ~= "function" then
    S.bad_argument(2, "xpcall", "function expected, got " .. type(handler))
  end
  return handled(handler, protected(body, ...))
end

local function create(body)
  if ended then
    error(END, 0)
  end
  local thread = raw_create(body)
  sethook(thread, on_count, "", COUNT)
  return thread
end

-- Coroutines that an error inside the hook may have ended. Closing one runs its `__close` functions, and
-- there Lua has switched hooks off for good.
local doomed = setmetatable({}, { __mode = "k" })

local function note_end(thread, ok, err)
  if not ok and (ended or fatal(err)) then
    doomed[thread] = true
  end
end

local function pass(thread, ok, first, ...)
  if ok and rawequal(first, TOKEN) then
    return pass(thread, raw_resume(thread, raw_yield(TOKEN, ...)))
  end
  note_end(thread, ok, first)
  return guarded(ok, first, ...)
end

local function unwrap(thread, ok, ...)
  if ok then
    return ...
  end
  if status(thread) == "dead" then
    raw_close(thread)
  end
  error((...), 0)
end

local function checked(name, body)
  if type(body) ~= "function" then
    S.bad_argument(1, name, "function expected, got " .. type(body), 3)
  end
end

S.coroutine = {
  close = function(thread)
    if ended then
      error(END, 0)
    elseif doomed[thread] then
      error("coroutine.close: this coroutine was ended by a limit", 2)
    end
    return guarded(raw_close(thread))
  end,
  isyieldable = coroutine.isyieldable,
  running = running,
  status = status,
  create = function(body)
    checked("create", body)
    return create(body)
  end,
  resume = function(thread, ...)
    if ended then
      error(END, 0)
    end
    return pass(thread, raw_resume(thread, ...))
  end,
  wrap = function(body)
    checked("wrap", body)
    local thread = create(body)
    return function(...)
      if ended then
        error(END, 0)
      end
      return unwrap(thread, pass(thread, raw_resume(thread, ...)))
    end
  end,
  yield = function(...)
    if rawequal(running(), main) then
      error("attempt to yield from outside a coroutine", 2)
    end
    return raw_yield(...)
  end,
  spawn = function()
    error("coroutine.spawn is not available in this version of Lunaq", 2)
  end,
}

local function answer(mark, ok, ...)
  if not rawequal(mark, REPLY) then
    error("this coroutine was waiting on behalf of an earlier message and cannot go on", 0)
  end
  if ok then
    return ...
  end
  error((...), 2)
end

-- Asks Python for something and waits; callers return this as a tail call, so that an error raised here
-- names the handler's line.
function S.request(operation, ...)
  return answer(raw_yield(TOKEN, operation, ...))
end

local function begin(body)
  main = raw_create(body)
  ended, raises = false, 0
  sethook(main, on_count, "", COUNT)
  return main
end

-- What a dead coroutine ended with, as values Python can take: text, traceback, or an error object.
local function failure(thread, value)
  local trace = traceback(thread)
  note_end(thread, false, value)
  if not doomed[thread] then
    raw_close(thread)
  end
  if type(value) == "table" then
    local message = S.rawget(value, "message")
    value = type(message) == "string" and message or "the error is a table without a text `message`"
  elseif type(value) ~= "string" and type(value) ~= "userdata" then
    value = S.tostring(value)
  end
  return value, trace, raises
end

local function finished(ok, ...)
  local thread = main
  main, S.delivery = nil, nil
  if not ok then
    return "raised", failure(thread, (...))
  end
  local first, second = ...
  if second == nil then
    if first == false then
      return "false"
    elseif type(first) == "userdata" then
      return "error", first
    end
    return nil
  elseif type(second) == "userdata" then
    return "error", second
  elseif type(second) == "string" then
    return "text", second
  end
  return "other", type(second), first == false
end

local function drive(ok, first, ...)
  if ok and rawequal(first, TOKEN) then
    return ...
  end
  return finished(ok, first, ...)
end

-- Starts the handler on one body; returns nothing for success, or a word and what belongs to it.
function S.start(body)
  S.delivery = {}
  local thread = begin(S.handler)
  return drive(raw_resume(thread, body))
end

-- Hands a reply to the waiting handler: `ok` false raises the value there.
function S.resume(ok, ...)
  return drive(raw_resume(main, REPLY, ok, ...))
end

-- Forgets the waiting handler; it is never resumed, its open variables are not closed.
function S.abandon()
  main, S.delivery = nil, nil
end

-- Runs a chunk to its end before any message: true and its values, or false and the error.
function S.run(body)
  local function over(ok, ...)
    local thread = main
    main = nil
    if ok then
      return true, ...
    end
    return false, failure(thread, (...))
  end
  return over(raw_resume(begin(body)))
end
