-- claim: queued -> processing, highest priority first but for the shares of the lower ones, in each what was handed back
--        before what is new; for a consumer that holds nothing (alone is 1) one suspect before all, and nothing beside it. An
--        empty lock_ms is the lease.
-- KEYS     house
-- ARGV     consumer lock_ms max_messages max_bytes alone
-- RETURNS  {paused (0 or 1), suspects wait (0 or 1), entries looked at, rows, milliseconds for which the queue's rate is
--          spent}; a row is {id, entry, delivery, hash as a flat list}
--- include house
--- include place
--- include limits
--- include turns
--- include ending
--- include ownership
--- include take
--- include shares
local consumer, max_messages, max_bytes = ARGV[1], number(ARGV[3], 1), number(ARGV[4], 0)
local alone = ARGV[5] == '1'

local wrong = wrong_type()
if wrong then return wrong end
local lease_ms = lease_in_force()
if not lease_ms then return NOT_JOINED end
local lock_ms = math.max(lease_ms, number(ARGV[2], 0))  -- a shorter one would look like one deleted by hand
if agreed('paused') == '1' then return {1, 0, 0, {}, 0} end
local now = server_time()
local left, wait_ms = queue_allows(now)
max_messages = math.min(max_messages, left)

-- Asked of all streams before the first write: where a group is gone, this is the error that says so.
local returned, suspects, suspects_wait = {}, {}, 0
for _, letter in ipairs(PRIORITIES) do
  returned[letter] = call('XPENDING', STREAMS[letter], GROUP, '-', '+', math.max(1, max_messages), RETURNED)
  suspects[letter] = call('XPENDING', STREAMS[letter], GROUP, '-', '+', 1, SUSPECTS)
  if #suspects[letter] > 0 then suspects_wait = 1 end
end

-- XPENDING found what was handed back, XCLAIM takes it over and gives the id. Redis 6.2 leaves a deleted entry pending.
local function take_over(letter, pending, wanted)
  local entries = {}
  for i = 1, math.min(wanted, #pending) do entries[i] = table.remove(pending, 1)[1] end
  if #entries == 0 then return {} end
  local claimed, seen = {}, {}
  for _, entry in ipairs(call('XCLAIM', STREAMS[letter], GROUP, consumer, 0, unpack(entries))) do
    if entry then
      claimed[#claimed + 1] = entry
      seen[entry[1]] = true
    end
  end
  for _, entry in ipairs(entries) do
    if not seen[entry] then call('XACK', STREAMS[letter], GROUP, entry) end
  end
  return claimed
end

-- What a line gives: what was handed back, then what is new.
local function entries_of(letter, wanted)
  local entries = take_over(letter, returned[letter], wanted)
  if #entries == wanted then return entries end
  local reply = call('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', wanted - #entries, 'STREAMS', STREAMS[letter], '>')
  for _, entry in ipairs(reply and reply[1] and reply[1][2] or {}) do append(entries, entry) end
  return entries
end

local function may_wait(letter) return #returned[letter] > 0 or call('XLEN', STREAMS[letter]) > 0 end

local function waits(letter)
  if #returned[letter] > 0 then return true end
  for _, group in ipairs(info_about('GROUPS', STREAMS[letter])) do
    if group.name == GROUP then
      return call('XRANGE', STREAMS[letter], '(' .. group['last-delivered-id'], '+', 'COUNT', 1)[1] ~= nil
    end
  end
end

-- A spent rate is waited for by who would be given something else.
if left < 1 then
  local some = suspects_wait == 1 or waits('h') or waits('n') or waits('l')
  return {0, 0, 0, {}, some and wait_ms or 0}
end

local rows, bytes, looked_at = {}, 0, 0

local function take_suspect()
  for _, letter in ipairs(PRIORITIES) do
    local entries = take_over(letter, suspects[letter], 1)
    local places = in_line(entries)
    for _, found in ipairs(entries) do
      looked_at = looked_at + 1
      local row = take(letter, found[1], found[2] and found[2][2], places, consumer, lock_ms, now, true, true)
      if row then return row end
    end
  end
end

-- Adds what a line gives to its rows.
local function take_of(letter, wanted, taken)
  if wanted <= 0 or bytes >= max_bytes then return end
  local entries = entries_of(letter, wanted)
  local places = in_line(entries)
  for _, found in ipairs(entries) do
    local id, room = found[2] and found[2][2], bytes < max_bytes
    local row, size = take(letter, found[1], id, places, consumer, lock_ms, now, room)
    looked_at = looked_at + 1
    if row then
      taken[#taken + 1] = row
      bytes = bytes + size
    end
  end
end

-- Which slot of the call is whose makes no difference: lower lines are given what they are due first, and come last.
local function take_all()
  local lines, taken, last = {}, {h = {}, n = {}, l = {}}, {}
  local function free() return max_messages - #taken.h - #taken.n - #taken.l end
  for _, letter in ipairs(PRIORITIES) do
    if may_wait(letter) then append(lines, letter) end
  end
  if #lines > 1 then read_shares() end
  for i = #lines, 2, -1 do
    take_of(lines[i], math.min(free(), slots_due(lines[i], max_messages)), taken[lines[i]])
  end
  for _, letter in ipairs(lines) do
    last[letter] = free() == 0 or bytes >= max_bytes  -- higher ones took all slots: this line has waited for them
    take_of(letter, free(), taken[letter])
  end
  for i = 2, #lines do
    local letter = lines[i]
    settle_credit(letter, last[letter] and waits(letter), max_messages - free(), #taken[letter])
  end
  write_credits()
  for _, letter in ipairs(lines) do
    for _, row in ipairs(taken[letter]) do append(rows, row) end
  end
end

local suspect = alone and take_suspect()
if suspect then
  rows[1] = suspect
else
  take_all()
end
spend_of_queue(#rows, now)
return finish({0, suspects_wait, looked_at, rows, #rows < left and 0 or wait_ms})
