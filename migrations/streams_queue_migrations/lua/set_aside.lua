-- set_aside: ids that stand in a queue and had no body for a while -> lost, where a person can see them
-- KEYS     house
-- ARGV     limit grace_ms kept_for; what is left of a damaged body stays for kept_for seconds
-- RETURNS  {ids that still have time to get their body, ids set aside as a flat list of id and queue}
--- include house
--- include place
local limit, grace, kept_for = number(ARGV[1], 500), number(ARGV[2], 5000) / 1000, number(ARGV[3])

local wrong = wrong_type()
if wrong then return wrong end
local now, aside = server_time(), {}

local function queue_of(id)
  return call('ZSCORE', MAIN, id) and 'main' or call('ZSCORE', RETRY, id) and 'retry'
      or call('ZSCORE', SCHEDULED, id) and 'scheduled' or call('ZSCORE', DLQ, id) and 'dlq'
end

for _, id in ipairs(call('ZRANGEBYSCORE', BODILESS, '-inf', now - grace, 'LIMIT', 0, limit)) do
  local queue = queue_of(id)
  if queue and not read_body(id) then
    expire_message(id, now)
    if call('EXISTS', message_key(id)) == 1 then call('EXPIRE', message_key(id), kept_for) end
    aside[#aside + 1] = id
    aside[#aside + 1] = queue
  else
    call('ZREM', BODILESS, id)
  end
end
return finish({call('ZCARD', BODILESS), aside})
