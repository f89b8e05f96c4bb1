-- Runs a handler as a coroutine that Python drives, and ends it when its time is up.
-- A blocking call leaves a request in `hot` and yields TOKEN through every coroutine the handler made; no handler
-- can get hold of TOKEN or REPLY, so its own yields and resumes cannot be mistaken for ours.
-- A handler that is alone is driven from here, with nothing in between; once it has several coroutines, or
-- waits for a channel, `hot[MANY]` is set and tasks.lua decides who goes on.
local S = ...

local coroutine, error, type, sub, gsub = coroutine, error, type, string.sub, string.gsub
local setmetatable, select = setmetatable, select
local raw_create, raw_resume, raw_yield = coroutine.create, coroutine.resume, coroutine.yield
local raw_close, running, status = coroutine.close, coroutine.running, coroutine.status
local getinfo, pack, unpack = S.getinfo, table.pack, table.unpack
local sethook, traceback, clock, call = S.sethook, S.traceback, os.clock, S.call
local interrupted, refused = S.host.interrupted, S.host.refused
local serve = S.serve

-- What each message needs, in one array. Hundreds of states do not fit into the processor's caches, and each
-- upvalue, and each field of S, is a cache line or three by itself; of an array, four entries share one.
-- Other files on the path of each message name the entries that they use in the same way.
local DELIVERY <const> = 1 -- number of the message while it is handled, else nil
local ROOT <const> = 2 -- the coroutine resumed last from outside: of the handler, of spawn, of a chunk being loaded
local IDLE <const> = 3 -- the handler's coroutine of the message before, ready for another one
local MANY <const> = 4 -- what tasks.lua keeps of a handler with several coroutines, else nil
local ENDED <const> = 5 -- whether its time is up, or it was interrupted; Python knows why
local SERIAL <const> = 6 -- number of the message last started
local ASKED <const>, ASKED_COUNT <const> = 7, 8 -- a request, until Python takes it: operation and arguments
local TOKEN <const>, REPLY <const>, DONE <const> = 9, 10, 11
local RESUME <const>, UNPACK <const> = 12, 13
local TURN <const>, SECOND <const>, SECONDS <const> = 14, 15, 16 -- of `on_count`; up to 24 follow those of queue.lua
-- Of ahead.lua: whether runs may go ahead, whether this one may, and whether it has.
local MAY_RUN_AHEAD <const>, UNSEEN <const>, AHEAD <const> = 25, 26, 27
local SCRATCH <const> = 17 -- where queue.lua puts the values of a publish of pairs
local function token() end -- functions: see serve.lua
local function reply() end
-- All at once, so that all of them are in the array.
local hot = { nil, nil, nil, nil, false, 0, nil, 0, token, reply, S.DONE, raw_resume, unpack, 0, 0, os.time, nil, nil,
  nil, nil, nil, nil, nil, nil, false, false, false }
S.hot = hot
-- A single instruction can take milliseconds (texts of megabytes compared), so the hook comes often, and
-- looks at the clock only every TURNS times, or when a second has passed.
local COUNT <const>, TURNS <const> = 300, 16
local DEEP = 10000 -- calls below which no error may be caught
local PATIENCE = 0.01 -- seconds of CPU time between two questions to Python, which need the GIL

local owned = setmetatable({}, { __mode = "k" }) -- coroutines that wait, or that are not the handler's to resume
local raises = 0 -- how often `hot[ENDED]` had to be raised
local looked = clock()
-- Made beforehand: at the memory limit, an error that needs memory could not be raised.
local END = call(S.host.make_error, "the handler is being ended", "Canceled", true, "")

-- Number of the message that is handled, or nil.
function S.delivery()
  return hot[DELIVERY]
end

-- Ends the handler if its time is up.
local function look()
  if not hot[ENDED] then
    local now = clock()
    if now - looked < PATIENCE and now >= looked then
      return
    end
    looked = now
    S.pointed = nil -- where it takes so long, the rest of a batch need not wait for it
    hot[ENDED] = call(interrupted)
    if not hot[ENDED] then
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
  local hot = hot
  local turn, now = hot[TURN] + 1, hot[SECONDS]()
  if turn < TURNS and now == hot[SECOND] and not hot[ENDED] then
    hot[TURN] = turn
    return
  end
  hot[TURN], hot[SECOND] = 0, now
  if hot[AHEAD] then
    S.linger()
  end
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
    if hot[ENDED] then
      error(END, 0)
    elseif fatal((...)) then
      error((...), 0)
    elseif getinfo(DEEP, "l") then
      -- Lua walks the whole stack for each error that is caught: ending this would take too long.
      error("protected calls at a depth of more than " .. DEEP .. " calls: stack overflow", 0)
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
  if hot[ENDED] then
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
  if not ok and (hot[ENDED] or fatal(err)) then
    doomed[thread] = true
  end
end

local function go_on(thread, ...)
  owned[thread] = nil
  return raw_resume(thread, ...)
end

local function pass(thread, ok, first, ...)
  if ok and first == hot[TOKEN] then
    owned[thread] = true
    S.may_wait()
    return pass(thread, go_on(thread, raw_yield(first)))
  end
  note_end(thread, ok, first)
  return guarded(ok, first, ...)
end

-- Why the handler may not resume or close `thread`; nil if it may.
local function refusal(thread, verb)
  if owned[thread] and status(thread) == "suspended" then -- Lua itself refuses the others
    return "cannot " .. verb .. " a coroutine that waits in a blocking call or was made by coroutine.spawn"
  end
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
    local why = refusal(thread, "close")
    if hot[ENDED] then
      error(END, 0)
    elseif doomed[thread] then
      why = "coroutine.close: this coroutine was ended by a limit"
    end
    if why then
      error(why, 2)
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
    if hot[ENDED] then
      error(END, 0)
    end
    local why = refusal(thread, "resume")
    if why then
      return false, why
    end
    return pass(thread, raw_resume(thread, ...))
  end,
  wrap = function(body)
    checked("wrap", body)
    local thread = create(body)
    return function(...)
      if hot[ENDED] then
        error(END, 0)
      end
      local why = refusal(thread, "resume")
      if why then
        error(why, 2)
      end
      return unwrap(thread, pass(thread, raw_resume(thread, ...)))
    end
  end,
  yield = function(...)
    if running() == hot[ROOT] then
      error("attempt to yield from outside a coroutine: wait with time.sleep or a channel", 2)
    end
    return raw_yield(...)
  end,
}

local function answered(mark, ok, ...)
  if mark ~= hot[REPLY] then
    error("this coroutine was waiting on behalf of an earlier message and cannot go on", 0)
  end
  if ok then
    return ...
  end
  error((...), 2)
end

S.answered = answered

-- Asks Python for something and waits; callers return this as a tail call, so that an error raised here
-- names the handler's line.
function S.request(...)
  S.show(true)
  hot[ASKED], hot[ASKED_COUNT] = { ... }, select("#", ...)
  return answered(raw_yield(hot[TOKEN]))
end

-- Takes what was asked for: its operation and its arguments.
function S.asked()
  local asked = hot[ASKED]
  hot[ASKED] = nil
  return unpack(asked, 1, hot[ASKED_COUNT])
end

local function begin(body)
  local thread = raw_create(body)
  hot[ROOT] = thread
  hot[ENDED], raises = false, 0
  sethook(thread, on_count, "", COUNT)
  return thread
end

local function handle_anew(body)
  local thread = begin(serve)
  owned[thread] = true -- not the handler's to resume, whatever it remembers of earlier messages
  return raw_resume(thread, body, S.handler)
end

-- Starts the handler on `body`, in the coroutine it had for the message before if that one is still good.
local function handle(body)
  local serial, thread = hot[SERIAL] + 1, hot[IDLE]
  hot[SERIAL], hot[DELIVERY], hot[UNSEEN] = serial, serial, hot[MAY_RUN_AHEAD]
  if not thread then
    return handle_anew(body)
  end
  hot[ROOT], hot[IDLE] = thread, nil
  if hot[ENDED] then
    hot[ENDED], raises = false, 0
  end
  return hot[RESUME](thread, body)
end

-- What a dead coroutine ended with, as values Python can take: text, traceback, or an error object.
local function failure(thread, value)
  local trace = gsub(traceback(thread), "\n\t%?: in [^\n]*$", "")
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

-- Forgets the handler: one that waits is never resumed, its open variables are not closed.
function S.abandon()
  hot[ROOT], hot[DELIVERY], hot[MANY], hot[ASKED] = nil, nil, nil, nil
  hot[UNSEEN], hot[AHEAD] = false, false
end
local forget = S.abandon

-- What a handler that returned these has come to: nothing for success, or a word and what belongs to it.
local function verdict(first, second)
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

local function ended(thread, ok, mark, first, second)
  if not ok then
    return "raised", failure(thread, mark)
  end
  hot[IDLE] = thread
  return verdict(first, second)
end

local function finished(...)
  local publish, count = hot[AHEAD] and hot[ASKED], hot[ASKED_COUNT]
  forget()
  if publish then
    return S.with_publish(publish, count, ended(...))
  end
  return ended(...)
end

-- Takes what the handler's coroutine was resumed to, and tells what is to be done about it: nil for success, or a
-- word and what belongs to it.
local function drive(ok, mark, first, second)
  if hot[MANY] then
    return S.turn(ok, mark, first, second)
  elseif mark == hot[TOKEN] then
    return S.asked()
  end
  return finished(hot[ROOT], ok, mark, first, second)
end

-- Starts the handler on a body or, if `published`, gives it the reply to most requests: a publish that the broker
-- has confirmed. Returns as `drive` does. What most messages come to is dealt with here: each function more on
-- their way would be some six cache lines.
function S.start(body, published)
  local hot = hot
  local ok, mark, first, second
  if published then
    hot[AHEAD] = false
    ok, mark, first, second = hot[RESUME](hot[ROOT], hot[REPLY], true, true)
  else
    local serial, thread = hot[SERIAL] + 1, hot[IDLE]
    if not thread or hot[ENDED] then
      return drive(handle(body))
    end
    hot[SERIAL], hot[DELIVERY], hot[UNSEEN] = serial, serial, hot[MAY_RUN_AHEAD]
    hot[ROOT], hot[IDLE] = thread, nil
    ok, mark, first, second = hot[RESUME](thread, body)
  end
  if hot[MANY] then
    return drive(ok, mark, first, second)
  elseif mark == hot[TOKEN] then
    local asked = hot[ASKED]
    hot[ASKED] = nil
    return hot[UNPACK](asked, 1, hot[ASKED_COUNT])
  elseif mark == hot[DONE] and second == nil and (first == nil or first == true) then
    local asked = hot[AHEAD] and hot[ASKED]
    if not asked then
      hot[IDLE] = hot[ROOT]
      hot[ROOT], hot[DELIVERY] = nil, nil
      return nil
    elseif asked == hot[SCRATCH] then
      hot[IDLE] = hot[ROOT]
      hot[ROOT], hot[DELIVERY], hot[ASKED], hot[AHEAD] = nil, nil, nil, false
      return "last", hot[UNPACK](asked, 2, hot[ASKED_COUNT])
    end
  end
  return drive(ok, mark, first, second)
end

local builders = {} -- of bodies, in the order in which their shapes were learnt
S.builders = builders

local function run_batch(...)
  local values, at = { ... }, 1
  while S.index < S.last do
    S.index = S.index + 1
    local body
    body, at = builders[values[at]](values, at)
    local ok, mark, first, second = handle(body)
    local open = hot[MANY] or hot[AHEAD] -- not over, whatever it returned
    if second == nil and (first == nil or first == true) and mark == hot[DONE] and not open then
      hot[IDLE] = hot[ROOT]
    else
      local outcome = pack(drive(ok, mark, first, second))
      if open or outcome[1] ~= nil then
        return outcome
      end
    end
    if S.pointed == S.index and call(refused) then
      return { n = 0 } -- Python has refused it a value for lack of memory: its success does not count
    end
  end
end

-- Starts the handler on `count` bodies, one after the other, until one does more than succeed; each is given as
-- the number of its shape's builder (shapes.lua) and its values. Returns nil and the last one's index if all
-- succeeded, or which one did not and what `start` would have returned for it. An index of 0: there was no room
-- for the bodies.
function S.start_batch(count, ...)
  S.index, S.last, S.pointed = 0, count, 0
  local ok, outcome = raw_pcall(run_batch, ...)
  local index = S.index
  S.index, S.pointed = nil, nil
  if ok and outcome then
    return index, unpack(outcome, 1, outcome.n)
  end
  forget()
  if not ok then
    return index, "raised", outcome, "", 0
  end
  return nil, index
end

-- Hands a reply to the waiting handler: `ok` false raises the value there. One that has run ahead has no use for
-- what is not the confirm.
function S.resume(ok, ...)
  if hot[AHEAD] then
    forget()
    return "void"
  end
  return drive(raw_resume(hot[ROOT], hot[REPLY], ok, ...))
end

-- Runs a chunk to its end before any message: true and its values, or false and the error.
function S.run(body)
  local function over(ok, ...)
    local thread = hot[ROOT]
    hot[ROOT] = nil
    if ok then
      return true, ...
    end
    return false, failure(thread, (...))
  end
  return over(raw_resume(begin(body)))
end

-- Runs a function's chunk within a handler, as if before any message: true and its first value, or false
-- and the error.
function S.run_within(body)
  local delivery, thread = hot[DELIVERY], create(body)
  hot[DELIVERY] = nil
  local ok, value = guarded(raw_resume(thread))
  hot[DELIVERY] = delivery
  if not ok then
    return false, (failure(thread, value))
  elseif status(thread) ~= "dead" then
    return false, "its top-level code yields: wait in its function instead"
  end
  return true, value
end

-- Asks whether the handler's time is up, where no hook looks: between its coroutines.
function S.expired()
  if not hot[ENDED] then
    hot[ENDED] = call(interrupted)
    raises = hot[ENDED] and raises + 1 or raises
  end
  return hot[ENDED]
end

-- Tells whether an error must end the handler whoever could catch it.
function S.unstoppable(err)
  return hot[ENDED] or fatal(err)
end

S.END, S.owned = END, owned
S.create, S.failure, S.finished = create, failure, finished
