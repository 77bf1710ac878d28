-- doomed: reads which ids had no body for a while
-- KEYS     house
-- ARGV     limit grace_ms
-- RETURNS  {how many were noted as bodiless, those noted before the grace as a flat list of id and queue}; the queue is
--          empty where the id has a body now, or stands nowhere
--- include house
--- include place
--- include limits
--- include turns
--- include ending
local limit, grace = number(ARGV[1], 500), number(ARGV[2], 5000) / 1000

local wrong = wrong_type()
if wrong then return wrong end
local doomed = {}

local function queue_of(id)
  return call('ZSCORE', MAIN, id) and 'main' or call('ZSCORE', RETRY, id) and 'retry'
      or call('ZSCORE', SCHEDULED, id) and 'scheduled' or call('ZSCORE', DLQ, id) and 'dlq' or ''
end

for _, id in ipairs(call('ZRANGEBYSCORE', BODILESS, '-inf', server_time() - grace, 'LIMIT', 0, limit)) do
  doomed[#doomed + 1] = id
  doomed[#doomed + 1] = read_body(id, {'timestamp'}) and '' or queue_of(id)
end
return {call('ZCARD', BODILESS), doomed}
