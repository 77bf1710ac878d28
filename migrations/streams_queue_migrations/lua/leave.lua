-- leave: waiting -> waiting, held by a lock of the mover's, so that no worker takes it; and read
-- KEYS     house, then per message: message lock
-- ARGV     owner hold_ms max_bytes, then per message: id
-- RETURNS  per message: {"held", the set it stands in, score, PTTL of its body, of its dedup slot, digest of its hash,
--          hash as a flat list}, {"busy"} (somebody holds it), {"later"} (over max_bytes), {"gone"}, or {"expired"} (it
--          had no body)
--- include house
--- include place
--- include limits
--- include turns
--- include ending
local owner, hold_ms, max_bytes = ARGV[1], ARGV[2], number(ARGV[3], 0)
local MOVERS = 'reshard:'

local wrong = wrong_type()
if wrong then return wrong end
local now, bytes = server_time(), 0

local function stands_in(id)
  for _, pair in ipairs({{'main', MAIN}, {'retry', RETRY}, {'scheduled', SCHEDULED}, {'dlq', DLQ}}) do
    local score = call('ZSCORE', pair[2], id)
    if score then return pair[1], score end
  end
end

local function leave(id)
  local set, score = stands_in(id)
  if not set then return {'gone'} end
  local body = read_body(id)
  if not body then
    expire_message(id, now)
    return {'expired'}
  end
  local holder = try('GET', lock_key(id))
  if body._sq_owner or (holder and string.sub(holder, 1, #MOVERS) ~= MOVERS) then return {'busy'} end
  if bytes >= max_bytes then return {'later'} end
  local flat = call('HGETALL', message_key(id))
  for _, word in ipairs(flat) do bytes = bytes + #word + 8 end  -- many small ones count too
  local slot = is_slot(body.dedup_key) and try('GET', body.dedup_key) == id and call('PTTL', body.dedup_key) or -2
  call('SET', lock_key(id), owner, 'PX', hold_ms)
  return {'held', set, score, call('PTTL', message_key(id)), slot, redis.sha1hex(table.concat(flat, '\0')), flat}
end

local answers = {}
for a = 4, #ARGV do answers[#answers + 1] = leave(ARGV[a]) end
return finish(answers)
