-- Points in time for the `time` module (lua-api.md 3.3): integer seconds and nanoseconds since 1970, with a
-- location. Civil dates are arithmetic; only the offsets of named zones come from Python.
local S = ...

local type, error, setmetatable, ipairs, format = type, error, setmetatable, ipairs, string.format
local mathtype, tointeger = math.type, math.tointeger
local call, host, fail, fields, hidden = S.call, S.host, S.fail, S.fields, S.hidden
local time, nanoseconds = S.time, S.nanoseconds

local SECOND, DAY = 1000000000, 86400
local ZERO = -62135596800 -- 0001-01-01, which is_zero knows

-- Days since 1970-01-01 of a civil date and back, in the proleptic Gregorian calendar.
local function days_from_civil(y, m, d)
  y = y + (m - 1) // 12
  m = (m - 1) % 12 + 1
  if m <= 2 then
    y = y - 1
  end
  local era = y // 400
  local yoe = y - era * 400
  local doy = (153 * (m + (m > 2 and -3 or 9)) + 2) // 5
  return era * 146097 + yoe * 365 + yoe // 4 - yoe // 100 + doy - 719468 + d - 1
end

local function civil_from_days(days)
  days = days + 719468
  local era = days // 146097
  local doe = days - era * 146097
  local yoe = (doe - doe // 1460 + doe // 36524 - doe // 146096) // 365
  local doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
  local mp = (5 * doy + 2) // 153
  local month = mp + (mp < 10 and 3 or -9)
  return yoe + era * 400 + (month <= 2 and 1 or 0), month, doy - (153 * mp + 2) // 5 + 1
end

-- Location -------------------------------------------------------------------------------------------

local location_methods = {}
function location_methods.string(object)
  return fields(object, "Location", "string").name
end
local Location = S.class("Location", location_methods, { __tostring = location_methods.string })

-- Without `offset` (in seconds), Python knows the zone.
local function new_location(name, offset)
  local object = setmetatable({}, Location)
  hidden[object] = { class = "Location", name = name, offset = offset }
  return object
end

time.utc = new_location("UTC", 0)
time.localtz = new_location("Local")

function time.load_location(name)
  if type(name) ~= "string" or name == "" then
    return fail("location name required")
  elseif name == "UTC" then
    return time.utc, nil
  elseif name == "Local" then
    return time.localtz, nil
  elseif not call(host.zone_known, name) then
    return fail("unknown location: " .. name, "NotFound")
  end
  return new_location(name), nil
end

local function integer(value, position, name)
  local number = mathtype(value) and tointeger(value)
  if not number then
    S.bad_argument(position, name, "integer expected, got " .. type(value), 3)
  end
  return number
end

function time.fixed_zone(name, offset)
  if type(name) ~= "string" then
    S.bad_argument(1, "fixed_zone", "string expected, got " .. type(name))
  end
  return new_location(name, integer(offset, 2, "fixed_zone"))
end

local function offset_at(location, sec)
  local zone = hidden[location]
  if zone.offset then
    return zone.offset
  end
  return call(host.zone_offset, zone.name, sec)
end

-- Time -----------------------------------------------------------------------------------------------

local methods = {}
local Time = S.class("Time", methods, {
  __eq = function(left, right)
    local a, b = hidden[left], hidden[right]
    return a and b and a.class == "Time" and b.class == "Time" and a.sec == b.sec and a.nsec == b.nsec
  end,
})

local function new_time(sec, nsec, location)
  local object = setmetatable({}, Time)
  hidden[object] = {
    class = "Time",
    sec = sec + nsec // SECOND,
    nsec = nsec % SECOND,
    location = location or time.localtz,
  }
  return object
end

-- The civil fields of a time in its location.
local function civil(object, name)
  local at = fields(object, "Time", name)
  local offset = offset_at(at.location, at.sec)
  local shifted = at.sec + offset
  local days, rest = shifted // DAY, shifted % DAY
  local year, month, day = civil_from_days(days)
  return {
    year = year,
    month = month,
    day = day,
    hour = rest // 3600,
    minute = rest // 60 % 60,
    second = rest % 60,
    nanosecond = at.nsec,
    weekday = (days + 4) % 7,
    year_day = days - days_from_civil(year, 1, 1) + 1,
    offset = offset,
  }
end

for _, name in ipairs({
  "year",
  "month",
  "day",
  "hour",
  "minute",
  "second",
  "nanosecond",
  "weekday",
  "year_day",
}) do
  methods[name] = function(object)
    return civil(object, name)[name]
  end
end

local function from_civil(y, m, d, h, mi, s, ns, location)
  local sec = days_from_civil(y, m, d) * DAY + h * 3600 + mi * 60 + s + ns // SECOND
  -- The offset depends on the instant and the instant on the offset: two rounds settle it.
  local guess = sec - offset_at(location, sec)
  return new_time(sec - offset_at(location, guess), ns % SECOND, location)
end

local function location_of(value, position, name)
  if value == nil then
    return time.localtz
  elseif not hidden[value] or hidden[value].class ~= "Location" then
    S.bad_argument(position, name, "Location expected, got " .. type(value), 3)
  end
  return value
end

function time.now()
  local ns = call(host.now)
  return new_time(ns // SECOND, ns % SECOND)
end

function time.unix(sec, nsec)
  return new_time(integer(sec, 1, "unix"), integer(nsec or 0, 2, "unix"))
end

function time.date(y, mo, d, h, mi, s, ns, location)
  return from_civil(
    integer(y, 1, "date"),
    integer(mo, 2, "date"),
    integer(d, 3, "date"),
    integer(h or 0, 4, "date"),
    integer(mi or 0, 5, "date"),
    integer(s or 0, 6, "date"),
    integer(ns or 0, 7, "date"),
    location_of(location, 8, "date")
  )
end

function methods.date(object)
  local at = civil(object, "date")
  return at.year, at.month, at.day
end

function methods.clock(object)
  local at = civil(object, "clock")
  return at.hour, at.minute, at.second
end

function methods.unix(object)
  return fields(object, "Time", "unix").sec
end

function methods.unix_nano(object)
  local at = fields(object, "Time", "unix_nano")
  return at.sec * SECOND + at.nsec
end

function methods.is_zero(object)
  local at = fields(object, "Time", "is_zero")
  return at.sec == ZERO and at.nsec == 0
end

local function duration_argument(value, name)
  local ns, why = nanoseconds(value)
  if not ns then
    S.bad_argument(1, name, why, 3)
  end
  return ns
end

function methods.add(object, duration)
  local at = fields(object, "Time", "add")
  local ns = duration_argument(duration, "add")
  return new_time(at.sec + ns // SECOND, at.nsec + ns % SECOND, at.location)
end

function methods.add_date(object, years, months, days)
  local at = civil(object, "add_date")
  return from_civil(
    at.year + integer(years or 0, 1, "add_date"),
    at.month + integer(months or 0, 2, "add_date"),
    at.day + integer(days or 0, 3, "add_date"),
    at.hour,
    at.minute,
    at.second,
    at.nanosecond,
    hidden[object].location
  )
end

-- Compares two times: the difference in seconds and nanoseconds.
local function difference(object, other, name)
  local at, from = fields(object, "Time", name), hidden[other]
  if not from or from.class ~= "Time" then
    S.bad_argument(1, name, "Time expected, got " .. type(other), 3)
  end
  return at.sec - from.sec, at.nsec - from.nsec
end

function methods.sub(object, other)
  local sec, nsec = difference(object, other, "sub")
  return S.new_duration(sec * SECOND + nsec)
end

function methods.after(object, other)
  local sec, nsec = difference(object, other, "after")
  return sec > 0 or (sec == 0 and nsec > 0)
end

function methods.before(object, other)
  local sec, nsec = difference(object, other, "before")
  return sec < 0 or (sec == 0 and nsec < 0)
end

function methods.equal(object, other)
  local sec, nsec = difference(object, other, "equal")
  return sec == 0 and nsec == 0
end

function methods.location(object)
  return fields(object, "Time", "location").location
end

local function moved(object, location)
  local at = hidden[object]
  return new_time(at.sec, at.nsec, location)
end

function methods.utc(object)
  fields(object, "Time", "utc")
  return moved(object, time.utc)
end

function methods.in_local(object)
  fields(object, "Time", "in_local")
  return moved(object, time.localtz)
end

function methods.in_location(object, location)
  fields(object, "Time", "in_location")
  if location == nil then
    S.bad_argument(1, "in_location", "Location expected, got nil")
  end
  return moved(object, location_of(location, 1, "in_location"))
end

local function zone_text(offset)
  if offset == 0 then
    return "Z"
  end
  local minutes = (offset < 0 and -offset or offset) // 60
  return format("%s%02d:%02d", offset < 0 and "-" or "+", minutes // 60, minutes % 60)
end

local function rfc3339(object, name)
  local at = civil(object, name)
  return format("%04d-%02d-%02dT%02d:%02d:%02d", at.year, at.month, at.day, at.hour, at.minute, at.second),
    at
end

function methods.format_rfc3339(object)
  local text, at = rfc3339(object, "format_rfc3339")
  return text .. zone_text(at.offset)
end

S.civil, S.from_civil, S.time_methods, S.location_of = civil, from_civil, methods, location_of
S.new_location, S.offset_at = new_location, offset_at

function S.days_in_month(year, month)
  return days_from_civil(year, month + 1, 1) - days_from_civil(year, month, 1)
end

Time.__tostring = methods.format_rfc3339
