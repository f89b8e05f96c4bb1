-- What rings at a time: coroutines that sleep, and timers that a coroutine waits for.
local S = ...

local call, host = S.call, S.host

local monotonic = host.monotonic
local function now()
  return call(monotonic) or 0 -- nil at the memory limit, where the handler is about to be ended
end
S.monotonic = now

-- The monotonic time in so many nanoseconds; 73 years are for ever.
function S.due_in(ns)
  return now() + (ns < 1 << 61 and ns or 1 << 61)
end

-- A heap: the alarm to ring next is the first, and each knows its index.

function S.new_alarms()
  return { n = 0, order = 0 }
end

local function earlier(one, other)
  return one.at < other.at or (one.at == other.at and one.order < other.order)
end

local function place(heap, alarm, index)
  heap[index], alarm.index = alarm, index
end

local function settle(heap, alarm, index)
  while index > 1 and earlier(alarm, heap[index // 2]) do
    place(heap, heap[index // 2], index)
    index = index // 2
  end
  while 2 * index <= heap.n do
    local child = 2 * index
    if child < heap.n and earlier(heap[child + 1], heap[child]) then
      child = child + 1
    end
    if not earlier(heap[child], alarm) then
      break
    end
    place(heap, heap[child], index)
    index = child
  end
  place(heap, alarm, index)
end

-- Calls `alarm.ring(alarm)` at the monotonic time `alarm.at`, unless it is cleared before.
function S.set_alarm(alarm)
  local heap = S.alarms()
  heap.n, heap.order = heap.n + 1, heap.order + 1
  alarm.order, alarm.heap = heap.order, heap
  settle(heap, alarm, heap.n)
end

function S.clear_alarm(alarm)
  local heap, index = alarm.heap, alarm.index
  if heap[index] == alarm then
    local last = heap[heap.n]
    heap[heap.n] = nil
    heap.n = heap.n - 1
    if last ~= alarm then
      settle(heap, last, index)
    end
  end
end

-- Rings what is due.
function S.ring(heap)
  local at = heap.n > 0 and now()
  while heap.n > 0 and heap[1].at <= at do
    local alarm = heap[1]
    S.clear_alarm(alarm)
    alarm.ring(alarm)
  end
end
