-- The `time` module (lua-api.md 3.3): integer nanoseconds, civil dates by arithmetic, zones by Python.
local S = ...

local type, next, error, setmetatable, ipairs = type, next, error, setmetatable, ipairs
local mathtype, tointeger, floor = math.type, math.tointeger, math.floor
local call, host, fail = S.call, S.host, S.fail

local SECOND = 1000000000

local time = {
  NANOSECOND = 1,
  MICROSECOND = 1000,
  MILLISECOND = 1000000,
  SECOND = SECOND,
  MINUTE = 60 * SECOND,
  HOUR = 3600 * SECOND,
  RFC3339 = "2006-01-02T15:04:05Z07:00",
  RFC3339NANO = "2006-01-02T15:04:05.999999999Z07:00",
  RFC822 = "02 Jan 06 15:04 MST",
  RFC822Z = "02 Jan 06 15:04 -0700",
  RFC850 = "Monday, 02-Jan-06 15:04:05 MST",
  RFC1123 = "Mon, 02 Jan 2006 15:04:05 MST",
  RFC1123Z = "Mon, 02 Jan 2006 15:04:05 -0700",
  KITCHEN = "3:04PM",
  STAMP = "Jan _2 15:04:05",
  STAMP_MILLI = "Jan _2 15:04:05.000",
  STAMP_MICRO = "Jan _2 15:04:05.000000",
  STAMP_NANO = "Jan _2 15:04:05.000000000",
  DATE_TIME = "2006-01-02 15:04:05",
  DATE_ONLY = "2006-01-02",
  TIME_ONLY = "15:04:05",
}
for index, name in ipairs({
  "JANUARY", "FEBRUARY", "MARCH", "APRIL", "MAY", "JUNE",
  "JULY", "AUGUST", "SEPTEMBER", "OCTOBER", "NOVEMBER", "DECEMBER",
}) do
  time[name] = index
end
for index, name in ipairs({ "SUNDAY", "MONDAY", "TUESDAY", "WEDNESDAY", "THURSDAY", "FRIDAY", "SATURDAY" }) do
  time[name] = index - 1
end

local hidden = setmetatable({}, { __mode = "k" }) -- object -> its fields

-- Duration -------------------------------------------------------------------------------------------

local duration_methods = {}
local function fields(object, class, name)
  local value = hidden[object]
  if not value or value.class ~= class then
    error(class .. ":" .. name .. "() needs a " .. class .. "; call it with a colon", 3)
  end
  return value
end

local Duration = S.class("Duration", duration_methods, {
  __tostring = function(object)
    return call(host.format_duration, fields(object, "Duration", "tostring").ns)
  end,
  __eq = function(left, right)
    local a, b = hidden[left], hidden[right]
    return a and b and a.class == "Duration" and b.class == "Duration" and a.ns == b.ns
  end,
})

local function new_duration(ns)
  local object = setmetatable({}, Duration)
  hidden[object] = { class = "Duration", ns = ns }
  return object
end

for name, unit in next, { nanoseconds = 1, microseconds = 1000, milliseconds = 1000000 } do
  duration_methods[name] = function(object)
    local ns = fields(object, "Duration", name).ns
    return ns < 0 and -(-ns // unit) or ns // unit
  end
end
for name, unit in next, { seconds = SECOND, minutes = 60 * SECOND, hours = 3600 * SECOND } do
  duration_methods[name] = function(object)
    return fields(object, "Duration", name).ns / unit
  end
end

-- Nanoseconds of a number, a duration text or a Duration; nil and why not.
local function nanoseconds(value)
  if mathtype(value) == "integer" then
    return value
  elseif type(value) == "number" then
    local ns = value == value and tointeger(value < 0 and -floor(-value) or floor(value))
    return ns or nil, "duration out of range"
  elseif type(value) == "string" then
    local ns = call(host.parse_duration, value)
    return ns, "invalid duration: " .. value
  end
  local object = hidden[value]
  if object and object.class == "Duration" then
    return object.ns
  end
  return nil, "duration expected (nanoseconds, a text such as 1h30m, or a Duration), got " .. type(value)
end

function time.parse_duration(value)
  local ns, why = nanoseconds(value)
  if not ns then
    return fail(why)
  end
  return new_duration(ns), nil
end

function time.sleep(value)
  local ns, why = nanoseconds(value)
  if not ns then
    return fail(why)
  elseif ns <= 0 then
    return
  elseif not S.delivery() then
    return fail("no context")
  end
  return S.sleep(ns)
end

S.hidden, S.fields, S.new_duration, S.nanoseconds = hidden, fields, new_duration, nanoseconds
S.time = time
S.modules.time = time
