-- A handler runs ahead: it goes on from a publish before the broker has confirmed it, while nobody can tell.
-- Most handlers publish last. One that waited for the confirm would keep its Lua state for a round trip, and others
-- need states of their own meanwhile, more than the processor's caches hold: half of the cost of a message.
--
-- Whatever others could see (S.show) waits for the confirm, as does the message's ack. Where the publish is refused,
-- or the handler goes on for long, the run is void: the handler begins anew, and waits this time, so that it gets the
-- error where it published. Only a run of which nobody has seen anything may go ahead, so nobody sees anything twice,
-- but for the handler itself in its globals. `worker/ahead.py` decides whether a run may.
local S = ...

local call, host, look, answered, sethook = S.call, S.host, S.look, S.answered, S.sethook
local match, next, pack, unpack, move, select = string.match, next, table.pack, table.unpack, table.move, select
local raw_yield, isyieldable = coroutine.yield, coroutine.isyieldable
local hot = S.hot -- see scheduler.lua
local ENDED <const>, ASKED <const>, ASKED_COUNT <const>, TOKEN <const> = 5, 7, 8, 9
local MAY_RUN_AHEAD <const>, UNSEEN <const>, AHEAD <const> = 25, 26, 27
local LINGERS <const> = 1 -- a value of `hot[AHEAD]`

-- What only tells the handler something; the rest of `host` others could see, as far as this file knows.
local HARMLESS = { copy_error = true, equal = true, format_duration = true, interrupted = true, make_error = true,
  parse_duration = true, point = true, refused = true, void = true, wrap_error = true }
local HARMLESS_KINDS = { base64 = true, error = true, hash = true, hmac = true, json = true, message = true,
  random = true, uuid = true, zone = true }
local CLOCKS = { now = true, monotonic = true } -- tell how long a publish took, if asked after it

-- Callback -> whether others can see what it does; nil where it need not wait for a confirm.
local waits = S.waits
for name, callback in next, host do
  if CLOCKS[name] then
    waits[callback] = false
  elseif not (HARMLESS[name] or HARMLESS_KINDS[match(name, "^(%w+)_")]) then
    waits[callback] = true
  end
end

-- Lets runs go ahead, or not; from the next one on.
function S.run_ahead(may)
  hot[MAY_RUN_AHEAD] = may
end

-- Ends a run that is ahead and should have waited: the next instruction raises, and nobody can catch it.
local function void()
  hot[AHEAD], hot[ASKED] = false, nil
  call(host.void)
  hot[ENDED] = true
  sethook(look, "", 1)
end

-- Comes before a run that is ahead waits, or a coroutine that waits in it yields.
function S.may_wait()
  if hot[AHEAD] and not isyieldable() then
    void() -- Lua cannot yield here, such as in a comparison of table.sort
  end
end

-- Comes twice, some 5,000 instructions apart: what was published is not sent before the handler waits or ends.
function S.linger()
  if hot[AHEAD] == LINGERS then
    void()
  end
  hot[AHEAD] = LINGERS
end

-- Comes before all that others could see, if `seen`, or that tells the handler how far its publish is.
function S.show(seen)
  if hot[AHEAD] then
    S.may_wait()
    answered(raw_yield(hot[TOKEN]))
  end
  if seen then
    hot[UNSEEN] = false
  end
end

-- Asks for a publish in words that Python has to check; goes on at once if that is possible.
function S.publish(...)
  if not hot[UNSEEN] then
    return S.request(...)
  end
  hot[ASKED], hot[ASKED_COUNT] = { ... }, select("#", ...)
  hot[UNSEEN], hot[AHEAD] = false, true
  return true, nil
end

-- Puts the publish that is still to be confirmed before what its run has come to: "ahead", how many values the
-- publish has with its operation, these, and the rest.
function S.with_publish(asked, count, ...)
  local rest = pack(...)
  local out = move(asked, 1, count, 3, { "ahead", count })
  move(rest, 1, rest.n, 3 + count, out)
  return unpack(out, 1, 2 + count + rest.n)
end
