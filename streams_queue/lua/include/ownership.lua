-- Who holds a message. The truth is its hash (_sq_entry, _sq_owner, _sq_deliveries) and the lock beside it.

-- A lock may run out a moment before its entry has been idle for the lease: the server looks at two clocks.
local CLOCK_SLACK_MS = 50
local function ran_out(idle_ms, lease_ms) return idle_ms >= lease_ms - CLOCK_SLACK_MS end

local function token_of(entry, delivery) return entry .. '/' .. delivery end

-- Whether `consumer` still holds this delivery. A missing lock has two meanings: entry idle for less than the lease
-- means that somebody deleted it by hand, and the holder has lost the message; idle for longer means that it ran out
-- during an outage, and the holder keeps it as long as nobody else claimed it. Who has read the lock gives its `owner`.
local function holds(id, body, consumer, entry, delivery, lease_ms, owner)
  if not body or body._sq_entry ~= entry or body._sq_owner ~= consumer or body._sq_deliveries ~= delivery then
    return false
  end
  if owner == nil then owner = try('GET', lock_key(id)) end
  if owner then return owner == consumer end
  local live = live_entry(body)
  local pending = try('XPENDING', STREAMS[letter_of(body)], GROUP, live, live, 1)
  if pending.err or not pending[1] then return true end  -- the stream is gone, but nobody has claimed the message since
  return pending[1][2] == consumer and ran_out(pending[1][3], lease_ms)
end

-- Whether this very finish was applied before and only its reply was lost: the status it ended in, else nil.
local function settled_before(id, body, token)
  if body then
    return body._sq_settled == token and ((body.status == 'error' or body.status == 'queued') and body.status or 'retry')
  end
  local marker = try('GET', done_key(id))
  if type(marker) == 'string' and string.match(marker, '^%w+\n([^\n]*)') == token then
    return string.match(marker, '^%w+')
  end
end

-- A message that somebody took out of the line while its handler ran.
local function drop_taken_out(id, body)
  drop_strayed(letter_of(body), live_entry(body), id)
  call('DEL', lock_key(id))
end

-- What to answer instead of failing a message that is not the caller's to fail; nothing where it is. With an empty entry
-- it is an order from outside, which asks about nobody's delivery.
local function refusal(id, body, consumer, entry, delivery, lease_ms)
  local token = token_of(entry, delivery)
  if entry == '' then
    if not body or not place_of(id) then return 'gone' end
    if delivery ~= '' and body._sq_settled == token then return settled_before(id, body, token) end
    if is_dead_letter(id) then return 'error' end
  elseif not holds(id, body, consumer, entry, delivery, lease_ms) then
    return settled_before(id, body, token) or 'stale'
  elseif not call('ZSCORE', MAIN, id) then
    drop_taken_out(id, body)
    return 'gone'
  end
end

-- Dead letter: body kept for as long as dead letters are, slot freed.
local function bury(id, body, now, dead_letter_ttl, reason, error)
  local letter, entry = letter_of(body), live_entry(body)
  if entry then drop_entry(letter, entry) end
  leave_all_sets(id)
  call('ZADD', DLQ, now, id)
  call('HSET', message_key(id), 'status', 'error', 'error', error, 'moved_to_dlq_at', seconds(now), '_sq_reason', reason,
       '_sq_entry', letter)
  call('HDEL', message_key(id), '_sq_owner')
  arm_body(id, dead_letter_ttl)
  call('DEL', lock_key(id))
  free_slot(body, id)
  forget_user(body, id)
  leave_turns(body, id, now)
  count('dlq_messages')
  count('dead_' .. reason)
  tell(body._sq_listener, id, 'error', error)
end

-- Back in line where it stood: held by `returned` until a worker takes it, its delivery uncharged; by `suspects` where
-- it must run alone. Where the entry is gone with its stream, or its consumer with the group, it cannot be handed over:
-- `reconcile` then sees whether it lives, and gives the message a new one if not.
local function hand_back(id, body, letter, entry)
  local keeper = body._sq_suspect and SUSPECTS or RETURNED
  try('XCLAIM', STREAMS[letter], GROUP, keeper, 0, entry, 'JUSTID')
  call('HSET', message_key(id), 'status', 'queued', '_sq_entry', letter .. entry)
  call('HDEL', message_key(id), '_sq_owner')
  if body._sq_ttl then arm_body(id, body._sq_ttl) end
  call('DEL', lock_key(id))
  local key = key_of(body)
  if key then wait_again(key, id) end
end
