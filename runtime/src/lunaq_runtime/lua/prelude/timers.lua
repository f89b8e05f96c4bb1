-- time.after, time.timer and time.ticker (lua-api.md 3.3): channels that fill themselves (channel.lua).
local S = ...

local error, setmetatable = error, setmetatable
local fail, time, nanoseconds = S.fail, S.time, S.nanoseconds

-- The Time of so many nanoseconds ago.
function S.time_ago(ns)
  return time.now():add(-ns)
end

local function duration(value)
  if not S.delivery() then
    return nil, "no context"
  end
  local ns, why = nanoseconds(value)
  if ns and ns <= 0 then
    return nil, "the duration must be above 0"
  end
  return ns, why
end

-- A function of a duration: `make` is given its nanoseconds.
local function lasting(make)
  return function(value)
    local ns, why = duration(value)
    if not ns then
      return fail(why)
    end
    return make(ns)
  end
end

time.after = lasting(function(ns)
  return (S.new_timer(ns)), nil
end)

local timers = setmetatable({}, { __mode = "k" }) -- timer or ticker -> {channel, state}

local function class(name, methods)
  local Class = S.class(name, methods)
  local function of(object, method)
    local timer = timers[object]
    if not timer or timer.class ~= Class then
      error(name .. ":" .. method .. "() is called with a colon", 3)
    end
    return timer
  end
  function methods.response(object)
    return of(object, "response").channel
  end
  function methods.channel(object)
    return of(object, "channel").channel
  end
  return of, function(ns, period)
    local object = setmetatable({}, Class)
    local channel, state = S.new_timer(ns, period)
    timers[object] = { class = Class, channel = channel, state = state }
    return object, nil
  end
end

local timer_methods, ticker_methods = {}, {}
local timer_of, new_timer = class("Timer", timer_methods)
local ticker_of, new_ticker = class("Ticker", ticker_methods)

function timer_methods.stop(object)
  return S.set_timer(timer_of(object, "stop").state)
end

function timer_methods.reset(object, value)
  local timer = timer_of(object, "reset")
  local ns, why = duration(value)
  if not ns then
    S.bad_argument(1, "reset", why)
  end
  return S.set_timer(timer.state, ns)
end

function ticker_methods.stop(object)
  S.set_timer(ticker_of(object, "stop").state)
end

time.timer = lasting(new_timer)

time.ticker = lasting(function(ns)
  return new_ticker(ns, ns)
end)
