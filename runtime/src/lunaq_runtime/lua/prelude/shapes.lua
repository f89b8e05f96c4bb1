-- Functions for bodies with certain keys (lua/shapes.py): the starter takes the values as arguments, builds the
-- table and starts the handler; the builder finds its number and its values in a list, and returns the table and
-- where the next number stands.
local S = ...

local load, concat, select = S.load, table.concat, select
local format, gsub, byte = string.format, string.gsub, string.byte
local builders = S.builders

-- A key as Lua source. Every byte is escaped, so that no text of a message is ever compiled as anything else.
local function literal(key)
  return '["' .. gsub(key, ".", function(character)
    return format("\\%d", byte(character))
  end) .. '"]'
end

-- Returns the starter and the number of the builder. The keys are constants of both: as upvalues, each would be
-- an object of its own, and take longer to come out of memory than the rest of the table takes to build.
function S.shape(...)
  local count = select("#", ...)
  local values, fields, listed = {}, {}, {}
  for i, key in next, { ... } do
    local name = literal(key)
    values[i] = "v" .. i
    fields[i], listed[i] = name .. "=v" .. i, name .. "=list[at+" .. i .. "]"
  end
  local source = "local start = ... return function(" .. concat(values, ",") .. ") return start({"
    .. concat(fields, ",") .. "}) end, function(list, at) return {" .. concat(listed, ",") .. "}, at+" .. count + 1
    .. " end"
  local starter, builder = load(source, "=[lunaq]", "t")(S.start)
  builders[#builders + 1] = builder
  return starter, #builders
end
