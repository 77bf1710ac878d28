-- leave: waiting -> waiting, held by a lock of the mover's, so that no worker takes it; and read
-- KEYS     house, then per message: message lock
-- ARGV     owner hold_ms max_bytes version, then per message: id
-- RETURNS  per message: {"held", the set it stands in, score, PTTL of its body, of its dedup slot, digest of its hash,
--          what holds back its key: "pause_ms owed_at_work owed_at_enqueue", hash as a flat list}, {"busy"} (somebody
--          holds it, or a later mover), {"later"} (over max_bytes), {"gone"}, or {"expired"} (it had no body);
--          an error for all where the number of shards was changed again since
--- include house
--- include place
--- include limits
--- include turns
--- include ending
local owner, hold_ms, max_bytes, version = ARGV[1], ARGV[2], number(ARGV[3], 0), ARGV[4]
local MOVERS = 'reshard:'

local wrong = wrong_type() or outdated(version)
if wrong then return wrong end
local now, bytes = server_time(), 0

local function stands_in(id)
  for _, pair in ipairs({{'main', MAIN}, {'retry', RETRY}, {'scheduled', SCHEDULED}, {'dlq', DLQ}}) do
    local score = call('ZSCORE', pair[2], id)
    if score then return pair[1], score end
  end
end

local function owed_by(limit, bucket)
  local rate = rate_of(agreed(limit))
  return rate and owed_of(rate, try('GET', bucket), now) or 0
end

-- A pause and what is spent of the rates, in time from now on: the other shard's server has a clock of its own.
local function hindrance_of(body)
  local key = key_of(body)
  if not key then return '0 0 0' end
  return string.format('%d %.6f %.6f', math.max(0, call('PTTL', of_key('pause', key))),
                       owed_by('limit_work_per_key', of_key('rate', key)),
                       owed_by('limit_accept_per_key', of_key('accept', key)))
end

-- Movers' names are in the order of their locks.
local function is_held_by_another(id, body)
  local holder = try('GET', lock_key(id))
  return body._sq_owner or (holder and (string.sub(holder, 1, #MOVERS) ~= MOVERS or holder > owner))
end

local function leave(id)
  local set, score = stands_in(id)
  if not set then return {'gone'} end
  local body = read_body(id)
  if not body then
    expire_message(id, now)
    return {'expired'}
  end
  if is_held_by_another(id, body) then return {'busy'} end
  if bytes >= max_bytes then return {'later'} end
  local flat = call('HGETALL', message_key(id))
  for _, word in ipairs(flat) do bytes = bytes + #word + 8 end  -- many small ones count too
  local slot = is_slot(body.dedup_key) and try('GET', body.dedup_key) == id and call('PTTL', body.dedup_key) or -2
  call('SET', lock_key(id), owner, 'PX', hold_ms)
  local digest = redis.sha1hex(table.concat(flat, '\0'))
  return {'held', set, score, call('PTTL', message_key(id)), slot, digest, hindrance_of(body), flat}
end

local answers = {}
for a = 5, #ARGV do answers[#answers + 1] = leave(ARGV[a]) end
return finish(answers)
