-- Several coroutines of one handler: those of coroutine.spawn and the calls of `funcs`, and who goes on next.
-- All of it happens inside one invocation. Python is asked for nothing but to carry requests out and to wait.
local S = ...

local error, next, type = error, next, type
local pack, unpack, concat = table.pack, table.unpack, table.concat
local raw_resume = coroutine.resume
local call, host, request, getinfo = S.call, S.host, S.request, S.getinfo
local answered, raw_yield = S.answered, coroutine.yield

local ROOT <const>, MANY <const>, ASKED <const>, TOKEN <const>, REPLY <const> = 2, 4, 7, 9, 10 -- see scheduler.lua
local hot = S.hot

local TURNS = 64 -- switches between two looks at the clock
local PATIENCE = 10000000 -- nanoseconds of switching after which replies that have come get in between

local now = S.monotonic

-- Tasks ------------------------------------------------------------------------------------------------
-- A task is a coroutine that the scheduler resumes. Its run is the handler's, or that of a function called
-- through `funcs`: where that ends, so do the tasks that it started.

-- Makes the handler's own coroutine the first of many.
local function enter()
  local many = hot[MANY]
  if not many then
    S.show(true)
    local main = { thread = hot[ROOT], run = { children = {}, context = {} } }
    many = {
      main = main,
      current = main,
      ready = {},
      first = 1,
      last = 0,
      alarms = S.new_alarms(),
      asked = {}, -- tag -> the task whose request is being carried out
      outstanding = 0,
      switches = 0,
      since = now(),
    }
    main.many = many
    S.owned[hot[ROOT]] = true
    hot[MANY] = many
  end
  return many
end
S.enter = enter

-- Lets a task that waits go on: with values, or (`ok` false) with an error raised where it waits.
local function ready(task, ...)
  local many = task.many
  task.wait, task.reply = nil, pack(...)
  many.last = many.last + 1
  many.ready[many.last] = task
end
S.ready = ready

-- Whether a task can still be woken: not one that is over, nor one of an earlier message.
function S.waits(task)
  return task.many == hot[MANY] and not task.over
end

-- Waits until somebody makes the current task ready. `wait.undo(wait)` is called if it is ended before.
function S.park(wait)
  if not S.delivery() then
    error("this would wait for ever: no message is being handled", 2)
  end
  enter().current.wait = wait
  hot[ASKED] = nil
  return answered(raw_yield(hot[TOKEN]))
end

local function start(run, parent, done, body, ...)
  local many = enter()
  local thread = S.create(body)
  S.owned[thread] = true
  local task = { thread = thread, many = many, run = run, parent = parent, done = done, fresh = true }
  parent.children[task] = true
  ready(task, ...)
  return task
end

local kill

local function kill_children(run)
  local children = run.children
  run.children = {}
  for task in next, children do
    kill(task)
  end
end

-- Ends a task that does not run: it is never resumed, its open variables are not closed.
function kill(task)
  if not task.over then
    task.over = true
    task.parent.children[task] = nil
    if task.wait then
      task.wait.undo(task.wait)
    end
    if task.run.owner == task then
      kill_children(task.run)
    end
  end
end
S.kill = kill

-- Runs `body(...)` as a run of its own, from which no error gets out: `done(ok, ...)` is told of its end.
function S.start_run(context, done, body, ...)
  local run = { children = {}, context = context }
  run.owner = start(run, enter().current.run, done, body, ...)
  return run.owner
end

-- The task that runs now, and the alarms of all tasks, of a handler that has several.
function S.current()
  return hot[MANY].current
end
function S.alarms()
  return hot[MANY].alarms
end

-- What `ctx` shows to the code that runs now.
function S.context()
  return hot[MANY] and hot[MANY].current.run.context or {}
end

function S.coroutine.spawn(body, ...)
  if type(body) ~= "function" then
    S.bad_argument(1, "spawn", "function expected, got " .. type(body))
  elseif not S.delivery() then
    error("coroutine.spawn: there is no message yet; spawn in the handler, not while its file is loaded", 2)
  end
  local run = enter().current.run
  return start(run, run, nil, body, ...).thread
end

-- Sleeps that many nanoseconds.
local function undo_sleep(alarm)
  S.clear_alarm(alarm)
end
local function wake(alarm)
  ready(alarm.task, true)
end
function S.sleep(ns)
  local many = hot[MANY]
  if not many then
    return request("sleep", ns)
  end
  local alarm = { at = S.due_in(ns), ring = wake, undo = undo_sleep, task = many.current }
  S.set_alarm(alarm)
  return S.park(alarm)
end

-- Turns ------------------------------------------------------------------------------------------------

-- Where a task waits, as `file:line`.
local function position(task)
  for level = 0, 100 do
    local info = getinfo(task.thread, level, "Sl")
    if not info then
      return "?"
    elseif info.short_src ~= "[lunaq]" and info.currentline > 0 then
      return info.short_src .. ":" .. info.currentline
    end
  end
end

local function deadlock(many)
  local places, others = {}, 0
  local function visit(run)
    for task in next, run.children do
      others = others + 1
      if others <= 8 then
        places[others] = position(task)
      end
      if task.run ~= run then
        visit(task.run)
      end
    end
  end
  visit(many.main.run)
  local text = "deadlock: the handler waits at " .. position(many.main)
  if others > 0 then
    text = text .. ", its other coroutines (" .. others .. ") at " .. concat(places, ", ")
  end
  S.abandon()
  return "deadlock", text .. "; nothing is pending that could wake one of them"
end

-- Sees to a spawned coroutine's end; false if its error is to end the handler.
local function over(task, ok, ...)
  local run, done = task.run, task.done
  task.over = true
  task.parent.children[task] = nil
  if done then
    kill_children(run)
    done(ok, ...)
  elseif not ok then
    local owner = run.owner
    if not owner then
      return false
    end
    kill(owner)
    owner.done(false, ...)
  end
  return true
end

local advance

-- Takes what the current task was resumed to: a request, a wait, or its end.
function S.turn(ok, first, ...)
  local many = hot[MANY]
  local task = many.current
  if ok and first == hot[TOKEN] then
    if not hot[ASKED] then
      return advance() -- it is parked
    elseif many.outstanding == 0 and many.first > many.last and many.alarms.n == 0 then
      return S.asked() -- nothing else can happen before this is answered
    end
    return "beside", S.asked()
  elseif task == many.main or (not ok and S.unstoppable(first)) then
    return S.finished(task.thread, ok, first, ...)
  elseif not ok and task.run.owner then
    first = S.failure(task.thread, first)
    if S.unstoppable(first) then
      return S.finished(task.thread, false, first)
    end
  end
  if over(task, ok, first, ...) then
    return advance()
  end
  return S.finished(task.thread, false, first)
end

local function take(many)
  while many.first <= many.last do
    local task = many.ready[many.first]
    many.ready[many.first] = nil
    many.first = many.first + 1
    if not task.over then
      return task
    end
  end
  many.first, many.last = 1, 0
end

local function resume(task)
  local reply = task.reply
  task.reply = nil
  if task.fresh then
    task.fresh = nil
    return raw_resume(task.thread, unpack(reply, 1, reply.n))
  end
  return raw_resume(task.thread, hot[REPLY], unpack(reply, 1, reply.n))
end

-- Resumes the next task that is ready; without one, has Python wait: "wait" and for how many nanoseconds,
-- or nil for as long as it takes.
function advance()
  local many = hot[MANY]
  many.switches = many.switches + 1
  if many.switches % TURNS == 0 then
    if S.expired() then
      return S.finished(many.current.thread, false, S.END)
    end
    S.ring(many.alarms)
    local at = now()
    if many.outstanding > 0 and at - many.since > PATIENCE then
      many.since = at
      return "wait", 0
    end
  end
  local task = take(many)
  if not task then
    S.ring(many.alarms)
    task = take(many)
  end
  if task then
    many.current, hot[ROOT] = task, task.thread
    return S.turn(resume(task))
  elseif many.alarms.n > 0 then
    local left = many.alarms[1].at - now()
    return "wait", left > 0 and left or 0
  elseif many.outstanding == 0 then
    return deadlock(many)
  end
  return "wait"
end

-- Goes on after a wait.
function S.go_on()
  hot[MANY].since = now()
  return advance()
end

local function undo_request(wait)
  local many = wait.many
  many.asked[wait.tag] = nil
  many.outstanding = many.outstanding - 1
  call(host.drop, wait.tag)
end

-- The current task's request is being carried out under a tag, the others go on.
function S.pending(tag)
  local many = hot[MANY]
  many.asked[tag] = many.current
  many.outstanding = many.outstanding + 1
  many.current.wait = { undo = undo_request, many = many, tag = tag }
  return advance()
end

-- Hands over the reply to a pending request; nothing runs before `go_on`.
function S.deliver(tag, ...)
  local many = hot[MANY]
  local task = many.asked[tag]
  if task then
    many.asked[tag] = nil
    many.outstanding = many.outstanding - 1
    ready(task, true, ...)
  end
end
