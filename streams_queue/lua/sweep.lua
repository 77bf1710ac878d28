-- sweep: processing by somebody who died -> handed to `returned` with a crash on its count; to `suspects` where the next
--        crash will be its last; or -> dead letter
--        Nothing where a maintainer is named whose turn is over, as after a server that was frozen: holders renew first.
-- KEYS     house, then: maintainer
-- ARGV     consumer max_deliveries dead_letter_ttl limit
-- RETURNS  {dead owners' entries left to look at (0 or 1), entries without a lock left to look at (0 or 1), messages
--          handed back, messages given up}
--- include house
--- include place
--- include limits
--- include turns
--- include ending
--- include ownership
local consumer, max_deliveries, dead_letter_ttl, limit = ARGV[1], number(ARGV[2], 3), ARGV[3], number(ARGV[4], 100)

local wrong = wrong_type()
if wrong then return wrong end
local lease_ms = number(agreed('lease_ms'))
local in_turn = consumer == '' or try('GET', KEYS[HOUSE + 1]) == consumer
if not lease_ms or not in_turn then return {0, 0, 0, 0} end
local now, recovered, dead = server_time(), 0, 0

local function id_of(letter, entry)
  local found = call('XRANGE', STREAMS[letter], entry, entry)[1]
  return found and found[2][2]
end

local function give_up(id, body, crashes)
  local times = crashes == 1 and 'once' or crashes .. ' times'
  bury(id, body, now, dead_letter_ttl, 'crash', 'the worker died or lost its lease ' .. times .. ' while it held this message')
  call('HSET', message_key(id), '_sq_crashes', crashes)
  dead = dead + 1
end

-- An entry that was idle for a lease, and that `returned` holds by now.
local function recover(letter, entry)
  local id = id_of(letter, entry)
  if not id or not call('ZSCORE', MAIN, id) then return drop_strayed(letter, entry, id) end
  local body = read_body(id)
  if not body or (body._sq_entry and body._sq_entry ~= letter .. entry) then
    drop_entry(letter, entry)
    if not body then expire_message(id, now) end
    return
  end
  local owner = try('GET', lock_key(id))
  if owner and owner == body._sq_owner and call('PTTL', lock_key(id)) <= CLOCK_SLACK_MS then owner = nil end
  if owner then  -- somebody made the lock outlive the lease, or took one by hand
    local keeper = owner == body._sq_owner and owner or LOCKED
    call('XCLAIM', STREAMS[letter], GROUP, keeper, 0, entry, 'JUSTID')
  elseif body._sq_owner then
    local crashes = number(body._sq_crashes, 0) + 1
    if crashes >= max_deliveries then return give_up(id, body, crashes) end
    if crashes >= max_deliveries - 1 then body._sq_suspect = '1' end
    hand_back(id, body, letter, entry)
    call('HSET', message_key(id), '_sq_crashes', crashes)
    if body._sq_suspect then call('HSET', message_key(id), '_sq_suspect', '1') end
    recovered = recovered + 1
  elseif body._sq_suspect then
    call('XCLAIM', STREAMS[letter], GROUP, SUSPECTS, 0, entry, 'JUSTID')
  end
end

-- No group yet, or a cursor that somebody made a text: the next sweep will do. A missing permission, say, would not mend.
local function mends(error_text)
  return string.find(error_text, 'NOGROUP', 1, true) or string.find(error_text, 'Invalid', 1, true)
end

-- Entries of dead owners go to `returned`, never to the sweeper, which may have no slot free. The cursor is kept:
-- XAUTOCLAIM looks at ten times COUNT entries, and behind that many live ones it would never see a dead one.
local function sweep_dead(letter)
  local field = 'sweep_cursor_' .. letter
  local cursor = call('HGET', META, field) or '0-0'
  local reply = try('XAUTOCLAIM', STREAMS[letter], GROUP, RETURNED, lease_ms, cursor, 'COUNT', limit, 'JUSTID')
  if failed(reply) then
    if not mends(reply.err) then error(reply.err) end
    call('HDEL', META, field)
    return false
  end
  for _, entry in ipairs(reply[2]) do recover(letter, entry) end
  call('HSET', META, field, reply[1])
  return reply[1] ~= '0-0'
end

-- Where an operator deleted the lock of a message, its holder has lost it, and what the lock held up goes on. An entry
-- that nobody adopted yet has no lock.
local function look_for_lock(letter, entry, consumer)
  local id = id_of(letter, entry)
  local body = id and call('EXISTS', lock_key(id)) == 0 and read_body(id)
  if not body then return end
  if consumer == LOCKED then
    call('XCLAIM', STREAMS[letter], GROUP, RETURNED, 0, entry, 'JUSTID')
    recover(letter, entry)
  elseif body._sq_owner == consumer and body._sq_entry == letter .. entry then
    hand_back(id, body, letter, entry)
    count('outside_unlocked')
    recovered = recovered + 1
  end
end

local function sweep_unlocked(letter)
  local field = 'lock_cursor_' .. letter
  local cursor = call('HGET', META, field) or '-'
  local page = try('XPENDING', STREAMS[letter], GROUP, cursor, '+', limit)
  if failed(page) then
    if not mends(page.err) then error(page.err) end
    call('HDEL', META, field)
    return false
  end
  for _, pending in ipairs(page) do
    local entry, consumer, idle = pending[1], pending[2], pending[3]
    if not ran_out(idle, lease_ms) and (consumer == LOCKED or not NO_WORKERS[consumer]) then look_for_lock(letter, entry, consumer) end
  end
  local last = page[#page]
  if last or cursor ~= '-' then call('HSET', META, field, #page == limit and '(' .. last[1] or '-') end
  return #page == limit
end

local more_dead, more_unlocked = 0, 0
for _, letter in ipairs(PRIORITIES) do
  if sweep_dead(letter) then more_dead = 1 end
  if sweep_unlocked(letter) then more_unlocked = 1 end
end
count('recovered_messages', recovered)
return finish({more_dead, more_unlocked, recovered, dead})
