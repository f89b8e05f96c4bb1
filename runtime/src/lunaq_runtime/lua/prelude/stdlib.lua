-- Lua 5.4's own libraries as handlers see them: with the shims of lua-api.md 4.3, and read-only.
local S = ...

local type, select, next, error, setmetatable = type, select, next, error, setmetatable
local mathtype, floor, exp, log, atan, abs, huge = math.type, math.floor, math.exp, math.log, math.atan, math.abs, math.huge
local fmod, tointeger = math.fmod, math.tointeger
local pack, unpack, gmatch, format = table.pack, table.unpack, S.gmatch, string.format

_G.unpack = unpack

function math.pow(x, y)
  return x ^ y
end

function math.log10(x)
  return log(x, 10)
end

function math.atan2(y, x)
  return atan(y, x)
end

function math.cosh(x)
  return (exp(x) + exp(-x)) / 2
end

function math.sinh(x)
  return (exp(x) - exp(-x)) / 2
end

function math.tanh(x)
  if abs(x) > 20 then
    return x > 0 and 1.0 or -1.0
  end
  local e = exp(2 * x)
  return (e - 1) / (e + 1)
end

function math.ldexp(mantissa, exponent)
  return mantissa * 2.0 ^ exponent
end

function math.frexp(x)
  if x == 0 or x ~= x or abs(x) == huge then
    return x, 0
  end
  local exponent = floor(log(abs(x), 2)) + 1
  local mantissa = x / 2.0 ^ exponent
  if abs(mantissa) >= 1 then
    return mantissa / 2, exponent + 1
  elseif abs(mantissa) < 0.5 then
    return mantissa * 2, exponent - 1
  end
  return mantissa, exponent
end

math.mod = fmod

function table.getn(list)
  return #list
end

function table.maxn(list)
  local highest = 0
  for key in next, list do
    if type(key) == "number" and key > highest then
      highest = key
    end
  end
  return highest
end

function table.create()
  return {}
end

function table.freeze(list)
  if type(list) ~= "table" then
    S.bad_argument(1, "freeze", "table expected, got " .. type(list))
  elseif S.frozen[list] then
    return list
  elseif S.raw_metatable(list) then
    S.bad_argument(1, "freeze", "a table with a metatable cannot be frozen")
  end
  local real = {}
  for key, value in next, list do
    real[key] = value
  end
  for key in next, real do
    list[key] = nil
  end
  S.frozen[list] = real
  return S.seal("frozen", list, real)
end

function table.isfrozen(list)
  return S.frozen[list] ~= nil
end

local integral = { d = true, i = true, x = true, X = true, o = true, c = true }

-- Truncates floats where the format wants an integer.
function string.format(pattern, ...)
  local floats = false
  for index = 1, select("#", ...) do
    if mathtype((select(index, ...))) == "float" then
      floats = true
      break
    end
  end
  if not floats or type(pattern) ~= "string" then
    return format(pattern, ...)
  end
  local values, index = pack(...), 0
  for conversion in gmatch(pattern, "%%[-+ #0]*%d*%.?%d*(.)") do
    if conversion ~= "%" then
      index = index + 1
      local value = values[index]
      if integral[conversion] and mathtype(value) == "float" then
        values[index] = tointeger(value < 0 and -floor(-value) or floor(value)) or value
      end
    end
  end
  return format(pattern, unpack(values, 1, values.n))
end

S.libraries = {
  string = string,
  table = table,
  math = math,
  utf8 = utf8,
  coroutine = S.coroutine,
  os = S.os,
}
for name, library in next, S.libraries do
  _G[name] = S.readonly(name, library)
end
_G.process = S.process
