-- What outsiders did to main is mended, id by id. Whoever includes this has called `begin_mending`.
local WINDOW = 60             -- seconds around now in which an id added by hand is found within a second
local BODILESS_GRACE = 5      -- seconds an id may stand in main before its body is written
local BODILESS_TTL = 180      -- seconds that the note of it lasts, longer than the time between two full passes
local repaired, expired, adopted_ttl, dedup_expiry = 0, 0, 3600, 3600

-- Notes of what was mended meanwhile. A write that is allowed at maxmemory, and so what follows is allowed too.
local function begin_mending(now, ttl, expiry)
  call('ZREMRANGEBYSCORE', BODILESS, '-inf', now - BODILESS_TTL)
  adopted_ttl, dedup_expiry = ttl, number(expiry, dedup_expiry)
end

local function note_bodiless(id, now)
  call('ZADD', BODILESS, 'NX', now, id)
  call('EXPIRE', BODILESS, BODILESS_TTL)
  if number(call('ZSCORE', BODILESS, id), now) <= now - BODILESS_GRACE then
    expire_message(id, now)
    expired = expired + 1
  end
end

-- `elsewhere`: in how many other places than main the message stood.
local function count_edit(body, elsewhere)
  if elsewhere > 0 then
    count('outside_two_places')
  elseif live_entry(body) then
    count('outside_entry_lost')
  elseif body._sq_ttl or body._sq_types then  -- of our own, or one of theirs that was adopted before
    count('outside_added')
  elseif is_claimed_elsewhere(body) then
    count('outside_claimed_elsewhere')
  end  -- else an old producer has put it into line, as documented
end

-- An old producer's hash that has no end gets one.
local function old_life(id) return number(life_of(id, adopted_ttl)) or adopted_ttl end

local function adopt(id, body)
  local letter, old = letter_of(body), live_entry(body)
  if old then drop_entry(letter, old) end
  local entry = letter .. call('XADD', STREAMS[letter], '*', 'id', id)
  if LINES[letter] then call('ZADD', LINES[letter], call('ZSCORE', MAIN, id), id) end
  count_edit(body, call('ZREM', RETRY, id) + call('ZREM', SCHEDULED, id) + call('ZREM', DLQ, id))
  call('ZREM', BODILESS, id)
  call('ZREM', PARKED, id)
  if body.status == 'queued' and number(body.retry_count, 0) == 0 then restart(id, body, dedup_expiry) end
  local ttl = body._sq_ttl or (not body._sq_types and old_life(id)) or nil
  if ttl then call('HSET', message_key(id), '_sq_ttl', ttl) end
  call('HSET', message_key(id), 'status', 'queued', '_sq_entry', entry)
  call('HDEL', message_key(id), '_sq_owner')
  arm_body(id, ttl)
  local score = call('ZSCORE', MAIN, id)
  index_user(body, id, score, ttl)
  enter_turns(body, id, score)
  repaired = repaired + 1
end

-- Nearly every id has a body and a living entry, or is parked: that is all that is read of it.
local function state_of(id)
  if unparked[id] then return 'well' end
  local seen = try('HMGET', message_key(id), 'timestamp', '_sq_entry')
  if failed(seen) or not seen[1] or not seen[2] then return nil end
  local body = {_sq_entry = seen[2]}
  local entry = live_entry(body)
  local ms, seq = string.match(entry or '', '^(%d+)%-(%d+)$')
  if not entry then return nil end
  local in_stream, alive = look_for_entry(letter_of(body), entry, tonumber(ms), tonumber(seq))
  if alive then return 'well' end
  return in_stream and call('ZSCORE', PARKED, id) and 'parked' or nil
end

local function mend(id, state, now)
  if state == 'well' then return end
  local body = read_body(id)
  if not body then return note_bodiless(id, now) end
  if state == 'parked' then return look_at_parked(id, body, now) end
  if call('EXISTS', lock_key(id)) == 1 then return end
  adopt(id, body)
end

local function mend_newest(now, limit)
  local newest = call('ZREVRANGEBYSCORE', MAIN, now + WINDOW, now - WINDOW, 'LIMIT', 0, limit)
  for i = #newest, 1, -1 do
    local id = newest[i]
    local state = state_of(id)
    if state ~= 'parked' then mend(id, state, now) end
  end
end

-- Ids in main less entries in the streams: zero in a quiet queue.
local function difference()
  count('adopted_messages', repaired)
  return call('ZCARD', MAIN) - call('XLEN', STREAMS.h) - call('XLEN', STREAMS.n) - call('XLEN', STREAMS.l)
end
