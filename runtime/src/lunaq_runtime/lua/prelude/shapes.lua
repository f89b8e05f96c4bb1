-- Functions for bodies with certain keys (lua/shapes.py): the starter takes the values as arguments, builds the
-- table and starts the handler; the builder finds its number and its values in a list, and returns the table and
-- where the next number stands.
local S = ...

local load, concat, select = S.load, table.concat, select
local builders = S.builders

local makers = {} -- number of keys -> function that takes so many keys and returns starter and builder

local function maker_for(count)
  local keys, values, fields, listed = {}, {}, {}, {}
  for i = 1, count do
    keys[i], values[i] = "k" .. i, "v" .. i
    fields[i], listed[i] = "[k" .. i .. "]=v" .. i, "[k" .. i .. "]=list[at+" .. i .. "]"
  end
  -- Keys come in as values, so that no text of a message is ever compiled.
  local source = "local start = ... return function(" .. concat(keys, ",") .. ") return function("
    .. concat(values, ",") .. ") return start({" .. concat(fields, ",") .. "}) end, function(list, at) return {"
    .. concat(listed, ",") .. "}, at+" .. count + 1 .. " end end"
  return load(source, "=[lunaq]", "t")(S.start)
end

-- Returns the starter and the number of the builder.
function S.shape(...)
  local count = select("#", ...)
  local maker = makers[count]
  if not maker then
    maker = maker_for(count)
    makers[count] = maker
  end
  local starter, builder = maker(...)
  builders[#builders + 1] = builder
  return starter, #builders
end
