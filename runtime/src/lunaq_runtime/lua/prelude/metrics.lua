-- The `metrics` module (lua-api.md 3.12); Python keeps the numbers (lua/modules/metrics.py).
local S = ...

local type, ipairs = type, ipairs
local call, host, fail, answer = S.call, S.host, S.fail, S.answer

local function send(implementation, name, value, labels)
  if type(name) ~= "string" then
    return fail("metric name required: a string", "Internal")
  elseif type(value) ~= "number" then
    return fail("the value must be a number", "Internal")
  end
  local out = {}
  local n = S.flatten_fields(type(labels) == "table" and labels or nil, out, 0)
  return answer(call(implementation, name, value, S.with_tokens(out, n)))
end

local metrics = {}

function metrics.counter_inc(name, labels)
  return send(host.metrics_counter, name, 1, labels)
end

function metrics.gauge_inc(name, labels)
  return send(host.metrics_gauge, name, 1, labels)
end

function metrics.gauge_dec(name, labels)
  return send(host.metrics_gauge, name, -1, labels)
end

for _, pair in ipairs({
  { "counter_add", host.metrics_counter },
  { "gauge_set", host.metrics_set },
  { "histogram", host.metrics_histogram },
}) do
  metrics[pair[1]] = function(name, value, labels)
    return send(pair[2], name, value, labels)
  end
end

S.modules.metrics = metrics
