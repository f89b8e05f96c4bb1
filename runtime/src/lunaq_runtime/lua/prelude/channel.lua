-- Channels between the coroutines of a handler, and select (lua-api.md 3.4).
-- A timer (timers.lua) is a channel that fills itself when its time has come and somebody looks.
local S = ...

local type, next, error, rawequal, rawget, setmetatable = type, next, error, rawequal, rawget, setmetatable
local tointeger = math.tointeger
local bad_argument, ready, waits = S.bad_argument, S.ready, S.waits

local CLOSED = "send on a closed channel"

local states = setmetatable({}, { __mode = "k" }) -- channel -> its state
local cases = setmetatable({}, { __mode = "k" }) -- case -> {channel, state, sends, value}
local methods = {}
local Channel = S.class("channel", methods)
local Case = S.class("channel.case", {})

-- Waiters ------------------------------------------------------------------------------------------------
-- An entry is one case of a wait. It stands in its channel's queue of senders or receivers, and leaves it
-- with all others of its wait as soon as one of them is served.

local function new_queue()
  return { first = 1, last = 0, count = 0 }
end

local function leave(entry)
  local queue = entry.queue
  if rawequal(queue[entry.at], entry) then
    queue[entry.at] = nil
    queue.count = queue.count - 1
    if queue.count == 0 then
      queue.first, queue.last = 1, 0
    end
  end
end

-- The first waiter that can still be woken.
local function front(queue)
  while queue.count > 0 do
    local entry = queue[queue.first]
    if entry then
      if waits(entry.wait.task) then
        return entry
      end
      leave(entry)
    end
    if queue.count > 0 then
      queue.first = queue.first + 1
    end
  end
end

local function clear_alarm(state)
  if state.alarm then
    S.clear_alarm(state.alarm)
    state.alarm = nil
  end
end

local function undo(wait)
  for index = 1, #wait do
    local entry = wait[index]
    leave(entry)
    if not front(entry.state.receivers) then
      clear_alarm(entry.state)
    end
  end
end

-- Lets the waiter of an entry go on: its send was taken, or it receives `value, ok`.
local function serve(entry, value, ok)
  local wait = entry.wait
  undo(wait)
  if wait.select then
    ready(wait.task, true, { channel = entry.channel, value = value, ok = ok })
  elseif entry.sends then
    ready(wait.task, true, true)
  else
    ready(wait.task, true, value, ok)
  end
end

-- Timers -------------------------------------------------------------------------------------------------

local set_alarm

-- Puts a timer's value into its channel if its time has come; a timer ends with the message it was made for.
local function look(state)
  local timer = state.timer
  if not timer or not timer.at then
    return
  elseif timer.delivery ~= S.delivery() then
    timer.at = nil
    return
  end
  local late = S.monotonic() - timer.at
  if late < 0 then
    return
  end
  timer.at = timer.period and timer.at + (late // timer.period + 1) * timer.period
  local receiver = front(state.receivers)
  if receiver then
    serve(receiver, S.time_ago(late), true)
  elseif state.count == 0 and not state.closed then
    state.count, state.buffer[state.first] = 1, S.time_ago(late)
  end
end

local function ring(alarm)
  alarm.state.alarm = nil
  look(alarm.state)
  set_alarm(alarm.state)
end

function set_alarm(state)
  if state.timer and state.timer.at and not state.alarm and front(state.receivers) then
    state.alarm = { at = state.timer.at, ring = ring, state = state }
    S.set_alarm(state.alarm)
  end
end

-- Makes a channel that gets a Time in `ns` nanoseconds, and then every `period` of them.
function S.new_timer(ns, period)
  local channel, state = S.new_channel(1)
  state.timer = { at = S.due_in(ns), period = period, delivery = S.delivery() }
  return channel, state
end

-- Stops a timer, or sets it anew; what it holds is dropped. Tells whether it had still to be received.
function S.set_timer(state, ns)
  look(state)
  local timer = state.timer
  local active = timer.at ~= nil or state.count > 0
  state.count = 0
  timer.at, timer.delivery = ns and S.due_in(ns), S.delivery()
  clear_alarm(state)
  set_alarm(state)
  return active
end

-- Sending and receiving ----------------------------------------------------------------------------------

local function put(state, value)
  state.buffer[state.first + state.count] = value
  state.count = state.count + 1
end

local function can_send(state)
  return state.closed or state.count < state.size or front(state.receivers) ~= nil
end

local function can_receive(state)
  look(state)
  return state.count > 0 or state.closed or front(state.senders) ~= nil
end

-- Sends, where `can_send` and the channel is not closed.
local function send(state, value)
  local receiver = front(state.receivers)
  if receiver then
    serve(receiver, value, true)
  else
    put(state, value)
  end
end

-- Receives, where `can_receive`.
local function receive(state)
  local value, ok
  if state.count > 0 then
    local first = state.first
    value, ok = state.buffer[first], true
    state.buffer[first] = nil
    state.first, state.count = first + 1, state.count - 1
    if state.count == 0 then
      state.first = 1
    end
  end
  local sender = not state.closed and front(state.senders)
  if sender then
    if ok then
      put(state, sender.value)
    else
      value, ok = sender.value, true
    end
    serve(sender, nil, true)
  end
  return value, ok or false
end

local function add(wait, channel, state, sends, value)
  local queue = sends and state.senders or state.receivers
  local entry = { wait = wait, channel = channel, state = state, sends = sends, value = value, queue = queue }
  entry.at = queue.last + 1
  queue[entry.at], queue.last, queue.count = entry, entry.at, queue.count + 1
  wait[#wait + 1] = entry
  if not sends then
    set_alarm(state)
  end
end

local function new_wait(select)
  if not S.delivery() then
    error("this would wait for ever: no message is being handled", 3)
  end
  return { task = S.enter().current, undo = undo, select = select }
end

-- The API ------------------------------------------------------------------------------------------------

function S.new_channel(size)
  local channel = setmetatable({}, Channel)
  local state = {
    size = size,
    buffer = {},
    first = 1,
    count = 0,
    senders = new_queue(),
    receivers = new_queue(),
  }
  states[channel] = state
  return channel, state
end

local function state_of(channel, name)
  local state = states[channel]
  if not state then
    error("ch:" .. name .. "() needs a channel; call it with a colon", 3)
  end
  return state
end

function methods.send(channel, value)
  local state = state_of(channel, "send")
  if state.closed then
    error(CLOSED, 2)
  elseif can_send(state) then
    send(state, value)
    return true
  end
  local wait = new_wait()
  add(wait, channel, state, true, value)
  return S.park(wait)
end

function methods.receive(channel)
  local state = state_of(channel, "receive")
  if can_receive(state) then
    return receive(state)
  end
  local wait = new_wait()
  add(wait, channel, state)
  return S.park(wait)
end

function methods.close(channel)
  local state = state_of(channel, "close")
  if state.closed then
    return
  end
  state.closed = true
  local entry = front(state.receivers)
  while entry do
    serve(entry, nil, false)
    entry = front(state.receivers)
  end
  entry = front(state.senders)
  while entry do
    undo(entry.wait)
    ready(entry.wait.task, false, CLOSED)
    entry = front(state.senders)
  end
end

local function new_case(channel, state, sends, value)
  local case = setmetatable({}, Case)
  cases[case] = { channel = channel, state = state, sends = sends, value = value }
  return case
end

function methods.case_send(channel, value)
  return new_case(channel, state_of(channel, "case_send"), true, value)
end

function methods.case_receive(channel)
  return new_case(channel, state_of(channel, "case_receive"), false)
end

local channel = {}

function channel.new(size)
  local integer = size == nil and 0 or (type(size) == "number" and tointeger(size))
  if not integer or integer < 0 then
    bad_argument(1, "new", "size expected: a whole number from 0 on")
  end
  return (S.new_channel(integer))
end

-- A generator of select's own: a handler may have seeded math.random.
local random = 1
local function one_of(count)
  random = random * 6364136223846793005 + 1442695040888963407
  return (random >> 33) % count + 1
end

local function checked(list)
  if type(list) ~= "table" then
    bad_argument(1, "select", "table of cases expected, got " .. type(list), 3)
  end
  local chosen = {}
  for index = 1, #list do
    chosen[index] = cases[list[index]]
    if not chosen[index] then
      local text = "case " .. index .. " is no case: use ch:case_receive() or ch:case_send(value)"
      bad_argument(1, "select", text, 3)
    end
  end
  for key in next, list do
    if key ~= "default" and not chosen[key] then
      bad_argument(1, "select", "a list of cases and `default` expected", 3)
    end
  end
  return chosen
end

function channel.select(list)
  local chosen = checked(list)
  local possible = {}
  for index = 1, #chosen do
    local case = chosen[index]
    if (case.sends and can_send or can_receive)(case.state) then
      possible[#possible + 1] = case
    end
  end
  if #possible > 0 then
    local case = possible[#possible > 1 and one_of(#possible) or 1]
    if not case.sends then
      local value, ok = receive(case.state)
      return { channel = case.channel, value = value, ok = ok }
    elseif case.state.closed then
      error(CLOSED, 2)
    end
    send(case.state, case.value)
    return { channel = case.channel, ok = true }
  elseif rawget(list, "default") then
    return { default = true, ok = true }
  elseif #chosen == 0 then
    bad_argument(1, "select", "without a case this would wait for ever")
  end
  local wait = new_wait(true)
  for index = 1, #chosen do
    local case = chosen[index]
    add(wait, case.channel, case.state, case.sends, case.value)
  end
  return S.park(wait)
end

S.modules.channel = channel
