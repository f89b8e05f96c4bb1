-- The `http_client` module (lua-api.md 3.10). A call yields its arguments; Python checks them
-- (lua/modules/http.py) and sends (worker/http_client.py).
local S = ...

local type, error, setmetatable, ipairs, tonumber = type, error, setmetatable, ipairs, tonumber
local gsub, find, format, byte, char = string.gsub, string.find, string.format, string.byte, string.char
local request, fail = S.request, S.fail

local streams = setmetatable({}, { __mode = "k" }) -- stream -> its number
local methods = {}
local Stream = S.class("http_client.Stream", methods)

local function number_of(stream, name)
  local number = streams[stream]
  if not number then
    error("stream:" .. name .. "() needs a stream; call it with a colon", 3)
  end
  return number
end

function methods.read(stream, count)
  local number = number_of(stream, "read")
  if count ~= nil and type(count) ~= "number" then
    return fail("the number of bytes must be a number")
  elseif not S.delivery() then
    return fail("no context")
  end
  return request("http_read", number, count)
end

function methods.close(stream)
  local number = number_of(stream, "close")
  if not S.delivery() then
    return fail("no context")
  end
  return request("http_close", number)
end

local function answered(response, err)
  if response and response.stream_id then
    local stream = setmetatable({}, Stream)
    streams[stream] = response.stream_id
    response.stream, response.stream_id = stream, nil
  end
  return response, err
end

local function send(operation, value)
  if not S.delivery() then
    return fail("no context")
  end
  local out = {}
  local n, why = S.flatten(value, out, 0)
  if not n then
    return fail(why)
  end
  return answered(request(operation, S.with_tokens(out, n)))
end

local http = {}

function http.request(method, url, options)
  return send("http", { method, url, options })
end

for _, name in ipairs({ "get", "head", "delete", "post", "put", "patch" }) do
  local method = name:upper()
  http[name] = function(url, options)
    return send("http", { method, url, options })
  end
end

function http.request_batch(requests)
  if type(requests) ~= "table" then
    return fail("requests must be a list of {method, url, options}")
  end
  return send("http_batch", requests)
end

function http.encode_uri(text)
  if type(text) ~= "string" then
    S.bad_argument(1, "encode_uri", "string expected, got " .. type(text))
  end
  return (gsub(gsub(text, "[^%w%-_.~ ]", function(c)
    return format("%%%02X", byte(c))
  end), " ", "+"))
end

function http.decode_uri(text)
  if type(text) ~= "string" then
    return fail("text required")
  elseif find(gsub(text, "%%%x%x", ""), "%", 1, true) then
    return fail("invalid URL escape")
  end
  return (gsub(gsub(text, "%+", " "), "%%(%x%x)", function(digits)
    return char(tonumber(digits, 16))
  end)), nil
end

S.modules.http_client = http
