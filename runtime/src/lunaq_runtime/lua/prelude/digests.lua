-- The modules base64, hash and crypto (lua-api.md 3.11). FNV is computed here, where the time limit reaches it.
local S = ...

local type, ipairs, byte, min = type, ipairs, string.byte, math.min
local call, host, fail, answer = S.call, S.host, S.fail, S.answer

local function text(value)
  return type(value) == "string" and value or nil
end

local function of_one(implementation)
  return function(data)
    return answer(call(implementation, text(data)))
  end
end

S.modules.base64 = { encode = of_one(host.base64_encode), decode = of_one(host.base64_decode) }

local hash = {}

for _, name in ipairs({ "md5", "sha1", "sha256", "sha512" }) do
  local plain, keyed = host["hash_" .. name], host["hmac_" .. name]
  hash[name] = function(data, raw)
    return answer(call(plain, text(data), raw and true or false))
  end
  hash["hmac_" .. name] = function(data, secret, raw)
    return answer(call(keyed, text(data), text(secret), raw and true or false))
  end
end

-- FNV-1a; a product of 64-bit integers wraps, which is what it asks for.
local function fnv(basis, prime, mask)
  return function(data)
    if type(data) ~= "string" then
      return fail("data must be a string")
    end
    local sum = basis
    for first = 1, #data, 64 do
      for _, value in ipairs({ byte(data, first, min(first + 63, #data)) }) do
        sum = (sum ~ value) * prime & mask
      end
    end
    return sum, nil
  end
end

hash.fnv32 = fnv(0x811c9dc5, 0x01000193, 0xffffffff)
hash.fnv64 = fnv(0xcbf29ce484222325, 0x100000001b3, -1)
S.modules.hash = hash

local function not_available(name)
  return function()
    return fail("crypto." .. name .. " is not available in this version of Lunaq", "Unavailable")
  end
end

local function number(value)
  return type(value) == "number" and value or nil
end

local crypto = {
  random = S.readonly("crypto.random", {
    bytes = function(count)
      return answer(call(host.random_bytes, number(count)))
    end,
    string = function(count, charset)
      if charset ~= nil and type(charset) ~= "string" then
        return fail("charset must be a string")
      end
      return answer(call(host.random_string, number(count), charset))
    end,
    uuid = function()
      return answer(call(host.random_uuid))
    end,
  }),
  hmac = S.readonly("crypto.hmac", {
    sha256 = function(key, data)
      return hash.hmac_sha256(data, key)
    end,
    sha512 = function(key, data)
      return hash.hmac_sha512(data, key)
    end,
  }),
  encrypt = S.readonly("crypto.encrypt", {
    aes = not_available("encrypt.aes"),
    chacha20 = not_available("encrypt.chacha20"),
  }),
  decrypt = S.readonly("crypto.decrypt", {
    aes = not_available("decrypt.aes"),
    chacha20 = not_available("decrypt.chacha20"),
  }),
  jwt = S.readonly("crypto.jwt", {
    encode = not_available("jwt.encode"),
    verify = not_available("jwt.verify"),
  }),
  pbkdf2 = not_available("pbkdf2"),
}

function crypto.constant_time_compare(one, other)
  if type(one) ~= "string" or type(other) ~= "string" then
    return false
  end
  local ok, equal = call(host.equal, one, other)
  return ok == true and equal == true
end

S.modules.crypto = crypto
