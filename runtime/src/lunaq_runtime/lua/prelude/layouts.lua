-- Times as text and back, by the reference-date layouts of lua-api.md 3.3; and rounding.
local S = ...

local type, ipairs, error, tonumber, tostring = type, ipairs, error, tonumber, tostring
local find, sub, match, format, lower, rep, gsub = string.find, string.sub, string.match, string.format, string.lower, string.rep, string.gsub
local concat = table.concat
local time, call, host, fail, hidden, fields = S.time, S.call, S.host, S.fail, S.hidden, S.fields
local civil, from_civil, methods, days_in_month = S.civil, S.from_civil, S.time_methods, S.days_in_month

local SECOND = 1000000000
local ZERO = -62135596800

local MONTHS = {
  "January", "February", "March", "April", "May", "June",
  "July", "August", "September", "October", "November", "December",
}
local DAYS = { [0] = "Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday" }

-- Token texts, a longer one before those it begins with. A name's short form does not begin a word.
local TOKENS = {
  "2006", "002", "January", "Monday", "-07:00", "-0700", "-07", "Z07:00", "Z0700", "MST",
  "Jan", "Mon", "01", "02", "03", "04", "05", "06", "15", "_2", "PM", "pm", "1", "2", "3", "4", "5",
}

local function token_at(layout, at)
  local fraction = match(layout, "^[.,]0+", at) or match(layout, "^[.,]9+", at)
  if fraction and not find(layout, "^%d", at + #fraction) then
    return fraction, "fraction"
  end
  if find(layout, "^_2006", at) then
    return nil
  end
  for _, token in ipairs(TOKENS) do
    if sub(layout, at, at + #token - 1) == token then
      local word = (token == "Jan" or token == "Mon") and find(layout, "^%l", at + 3)
      if not word then
        return token, token
      end
    end
  end
end

-- A layout as a list of {kind, text}; kind nil is literal text.
local function parts_of(layout)
  local parts, at, literal = {}, 1, 1
  while at <= #layout do
    local text, kind = token_at(layout, at)
    if text then
      if literal < at then
        parts[#parts + 1] = { text = sub(layout, literal, at - 1) }
      end
      parts[#parts + 1] = { kind = kind, text = text }
      at = at + #text
      literal = at
    else
      at = at + 1
    end
  end
  if literal <= #layout then
    parts[#parts + 1] = { text = sub(layout, literal) }
  end
  return parts
end

-- Time -> text ---------------------------------------------------------------------------------------

local function offset_text(offset, pattern)
  local minutes = (offset < 0 and -offset or offset) // 60
  return format(pattern, offset < 0 and "-" or "+", minutes // 60, minutes % 60)
end

local function zulu(pattern)
  return function(at)
    return at.offset == 0 and "Z" or offset_text(at.offset, pattern)
  end
end

local function twelve(hour)
  return (hour + 11) % 12 + 1
end

local function abbreviation(location, sec, offset)
  local zone = hidden[location]
  if zone.offset and zone.name ~= "" then
    return zone.name
  end
  return zone.offset and offset_text(offset, "%s%02d%02d") or call(host.zone_abbreviation, zone.name, sec)
end

local WRITERS = {
  ["2006"] = function(at) return format("%04d", at.year) end,
  ["06"] = function(at) return format("%02d", at.year % 100) end,
  ["January"] = function(at) return MONTHS[at.month] end,
  ["Jan"] = function(at) return sub(MONTHS[at.month], 1, 3) end,
  ["01"] = function(at) return format("%02d", at.month) end,
  ["1"] = function(at) return tostring(at.month) end,
  ["Monday"] = function(at) return DAYS[at.weekday] end,
  ["Mon"] = function(at) return sub(DAYS[at.weekday], 1, 3) end,
  ["02"] = function(at) return format("%02d", at.day) end,
  ["_2"] = function(at) return format("%2d", at.day) end,
  ["2"] = function(at) return tostring(at.day) end,
  ["002"] = function(at) return format("%03d", at.year_day) end,
  ["15"] = function(at) return format("%02d", at.hour) end,
  ["03"] = function(at) return format("%02d", twelve(at.hour)) end,
  ["3"] = function(at) return tostring(twelve(at.hour)) end,
  ["04"] = function(at) return format("%02d", at.minute) end,
  ["4"] = function(at) return tostring(at.minute) end,
  ["05"] = function(at) return format("%02d", at.second) end,
  ["5"] = function(at) return tostring(at.second) end,
  ["PM"] = function(at) return at.hour >= 12 and "PM" or "AM" end,
  ["pm"] = function(at) return at.hour >= 12 and "pm" or "am" end,
  ["MST"] = function(at) return abbreviation(at.location, at.sec, at.offset) end,
  ["-0700"] = function(at) return offset_text(at.offset, "%s%02d%02d") end,
  ["-07:00"] = function(at) return offset_text(at.offset, "%s%02d:%02d") end,
  ["-07"] = function(at) return offset_text(at.offset, "%s%02d") end,
  ["Z0700"] = zulu("%s%02d%02d"),
  ["Z07:00"] = zulu("%s%02d:%02d"),
  ["fraction"] = function(at, text)
    local digits = sub(format("%09d", at.nanosecond) .. rep("0", #text), 1, #text - 1)
    if sub(text, 2, 2) == "9" then
      digits = gsub(digits, "0+$", "")
    end
    return digits == "" and "" or sub(text, 1, 1) .. digits
  end,
}

function methods.format(object, layout)
  local at = civil(object, "format")
  if type(layout) ~= "string" then
    S.bad_argument(1, "format", "string expected, got " .. type(layout))
  end
  at.location, at.sec = hidden[object].location, hidden[object].sec
  local out = {}
  for index, part in ipairs(parts_of(layout)) do
    out[index] = part.kind and WRITERS[part.kind](at, part.text) or part.text
  end
  return concat(out)
end

-- text -> Time ---------------------------------------------------------------------------------------

-- Each reader takes the rest of the text and returns what is left of it, or nil; it fills in `at`.
local function number(name, pattern, low, high)
  return function(at, text)
    local digits, after = match(text, pattern)
    local value = tonumber(digits)
    if value and value >= low and value <= high then
      at[name] = value
      return sub(text, after)
    end
  end
end

local function name_of(field, names, first, last, short)
  return function(at, text)
    for index = first, last do
      local name = short and sub(names[index], 1, 3) or names[index]
      if lower(sub(text, 1, #name)) == lower(name) then
        at[field] = index
        return sub(text, #name + 1)
      end
    end
  end
end

local function read_fraction(at, text)
  local digits = match(text, "^[.,](%d+)")
  if digits then
    at.nanosecond = tonumber(sub(digits .. "000000000", 1, 9))
    return sub(text, #digits + 2)
  end
end

local function seconds(pattern)
  local read = number("second", pattern, 0, 59)
  return function(at, text)
    local rest = read(at, text)
    -- A fraction may follow seconds although the layout has none.
    return rest and (read_fraction(at, rest) or rest)
  end
end

local function offset(pattern, length, z)
  return function(at, text)
    if z and sub(text, 1, 1) == "Z" then
      at.offset, at.utc = 0, true
      return sub(text, 2)
    end
    local sign, hours, minutes = match(text, pattern)
    hours, minutes = tonumber(hours), tonumber(minutes or "0") or 0
    if hours and hours <= 24 and minutes < 60 then
      at.offset = (hours * 3600 + minutes * 60) * (sign == "-" and -1 or 1)
      return sub(text, length + 1)
    end
  end
end

local function half(am, pm)
  return function(at, text)
    local word = sub(text, 1, 2)
    if word == am or word == pm then
      at.half = word == pm and 12 or 0
      return sub(text, 3)
    end
  end
end

local READERS = {
  ["2006"] = number("year", "^(%d%d%d%d)()", 0, 9999),
  ["06"] = function(at, text)
    local digits = match(text, "^%d%d")
    if digits then
      at.year = tonumber(digits) + (tonumber(digits) >= 69 and 1900 or 2000)
      return sub(text, 3)
    end
  end,
  ["January"] = name_of("month", MONTHS, 1, 12),
  ["Jan"] = name_of("month", MONTHS, 1, 12, true),
  ["01"] = number("month", "^(%d%d)()", 1, 12),
  ["1"] = number("month", "^(%d%d?)()", 1, 12),
  ["Monday"] = name_of("weekday", DAYS, 0, 6),
  ["Mon"] = name_of("weekday", DAYS, 0, 6, true),
  ["02"] = number("day", "^(%d%d)()", 1, 31),
  ["_2"] = number("day", "^ ?(%d%d?)()", 1, 31),
  ["2"] = number("day", "^(%d%d?)()", 1, 31),
  ["002"] = number("year_day", "^(%d%d%d)()", 1, 366),
  ["15"] = number("hour", "^(%d%d?)()", 0, 23),
  ["03"] = number("hour", "^(%d%d)()", 0, 12),
  ["3"] = number("hour", "^(%d%d?)()", 0, 12),
  ["04"] = number("minute", "^(%d%d)()", 0, 59),
  ["4"] = number("minute", "^(%d%d?)()", 0, 59),
  ["05"] = seconds("^(%d%d)()"),
  ["5"] = seconds("^(%d%d?)()"),
  ["PM"] = half("AM", "PM"),
  ["pm"] = half("am", "pm"),
  ["MST"] = function(at, text)
    local zone = match(text, "^%u%u%u%u?")
    if zone then
      at.zone = zone
      return sub(text, #zone + 1)
    end
  end,
  ["-0700"] = offset("^([+-])(%d%d)(%d%d)", 5),
  ["-07:00"] = offset("^([+-])(%d%d):(%d%d)", 6),
  ["-07"] = offset("^([+-])(%d%d)", 3),
  ["Z0700"] = offset("^([+-])(%d%d)(%d%d)", 5, true),
  ["Z07:00"] = offset("^([+-])(%d%d):(%d%d)", 6, true),
  ["fraction"] = function(at, text, layout)
    if sub(layout, 2, 2) == "9" then
      return read_fraction(at, text) or text
    end
    local digits = match(text, "^[.,](%d+)")
    -- Fixed: as many digits as the layout has, no matter whether the seconds took them already.
    if digits and #digits >= #layout - 1 then
      at.nanosecond = tonumber(sub(sub(digits, 1, #layout - 1) .. "000000000", 1, 9))
      return sub(text, #layout + 1)
    end
  end,
}

local function read(layout, text)
  local at, rest = {}, text
  local parts = parts_of(layout)
  for index, part in ipairs(parts) do
    local following = parts[index + 1]
    if not part.kind then
      if sub(rest, 1, #part.text) ~= part.text then
        return nil, "at '" .. sub(rest, 1, 20) .. "': '" .. part.text .. "' expected"
      end
      rest = sub(rest, #part.text + 1)
    else
      local reader = READERS[part.kind]
      if (part.kind == "05" or part.kind == "5") and following and following.kind == "fraction" then
        reader = number("second", part.kind == "05" and "^(%d%d)()" or "^(%d%d?)()", 0, 59)
      end
      local left = reader(at, rest, part.text)
      if not left then
        return nil, "at '" .. sub(rest, 1, 20) .. "': no valid '" .. part.text .. "'"
      end
      rest = left
    end
  end
  if rest ~= "" then
    return nil, "extra text '" .. sub(rest, 1, 20) .. "'"
  end
  return at
end

local function date_of(at)
  local year, month, day = at.year or 0, at.month, at.day
  if at.year_day and not month then
    if at.year_day > 337 + days_in_month(year, 2) then
      return nil, "day of year out of range"
    end
    return year, 1, at.year_day
  end
  month, day = month or 1, day or 1
  if day > days_in_month(year, month) then
    return nil, "day out of range"
  end
  return year, month, day
end

local function hour_of(at)
  local hour = at.hour or 0
  if at.half then
    return hour % 12 + at.half
  end
  return hour
end

function time.parse(layout, text, location)
  if type(layout) ~= "string" then
    S.bad_argument(1, "parse", "string expected, got " .. type(layout))
  elseif type(text) ~= "string" then
    S.bad_argument(2, "parse", "string expected, got " .. type(text))
  end
  local own = location == nil and time.utc or S.location_of(location, 3, "parse")
  local function invalid(why)
    return fail("cannot parse '" .. sub(text, 1, 80) .. "' as '" .. sub(layout, 1, 80) .. "': " .. why)
  end
  local at, why = read(layout, text)
  if not at then
    return invalid(why)
  end
  local year, month, day = date_of(at)
  if not year then
    return invalid(month)
  end
  local function moment(zone)
    return from_civil(year, month, day, hour_of(at), at.minute or 0, at.second or 0, at.nanosecond or 0, zone)
  end
  if at.utc or at.zone == "UTC" then
    return moment(time.utc), nil
  elseif at.offset then
    local fixed = moment(S.new_location(at.zone or "", at.offset))
    local local_time = hidden[fixed].sec
    if S.offset_at(own, local_time) == at.offset then
      return moment(own), nil
    end
    return fixed, nil
  elseif at.zone then
    local guess = moment(own)
    local found = hidden[guess]
    if abbreviation(own, found.sec, S.offset_at(own, found.sec)) == at.zone then
      return guess, nil
    end
    return moment(S.new_location(at.zone, 0)), nil
  end
  return moment(own), nil
end

-- Rounding -------------------------------------------------------------------------------------------

local function product_modulo(a, b, m)
  local sum = 0
  while b > 0 do
    if b & 1 == 1 then
      sum = sum >= m - a and sum - (m - a) or sum + a
    end
    a = a >= m - a and a - (m - a) or a + a
    b = b >> 1
  end
  return sum
end

-- Nanoseconds of a time beyond the last multiple of `ns` since the zero time.
local function remainder(at, ns)
  local since = at.sec - ZERO
  if SECOND % ns == 0 then
    return at.nsec % ns
  elseif ns % SECOND == 0 then
    return since % (ns // SECOND) * SECOND + at.nsec
  end
  local whole, rest = product_modulo(since % ns, SECOND % ns, ns), at.nsec % ns
  return whole >= ns - rest and whole - (ns - rest) or whole + rest
end

local function rounding(name, up)
  methods[name] = function(object, duration)
    local at = fields(object, "Time", name)
    local given = hidden[duration]
    if not given or given.class ~= "Duration" then
      S.bad_argument(1, name, "Duration expected, got " .. type(duration))
    elseif given.ns <= 0 then
      return object
    end
    local over = remainder(at, given.ns)
    if up and over >= given.ns - over then
      return methods.add(object, given.ns - over)
    end
    return methods.add(object, -over)
  end
end
rounding("truncate", false)
rounding("round", true)
