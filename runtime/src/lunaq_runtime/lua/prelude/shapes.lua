-- Functions that start the handler on a body with certain keys: they take its values as arguments and build
-- the table in Lua (lua/shapes.py).
local S = ...

local load, concat, select = S.load, table.concat, select

local makers = {} -- number of keys -> function that takes so many keys and returns the starter

local function maker_for(count)
  local keys, values, fields = {}, {}, {}
  for i = 1, count do
    keys[i], values[i], fields[i] = "k" .. i, "v" .. i, "[k" .. i .. "]=v" .. i
  end
  -- Keys come in as values, so that no text of a message is ever compiled.
  local source = "local start = ... return function(" .. concat(keys, ",") .. ") return function("
    .. concat(values, ",") .. ") return start({" .. concat(fields, ",") .. "}) end end"
  return load(source, "=[lunaq]", "t")(S.start)
end

function S.shape(...)
  local count = select("#", ...)
  local maker = makers[count]
  if not maker then
    maker = maker_for(count)
    makers[count] = maker
  end
  return maker(...)
end
