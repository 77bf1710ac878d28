-- stats: reads the counts of one moment
-- KEYS     house
-- ARGV     (none)
-- RETURNS  {main, processing, retry, scheduled, dead, lost, paused (0 or 1), counters as a flat list}
--- include house
--- include flight
local counters = try('HGETALL', STATS)
return {
  call('ZCARD', MAIN), in_flight('h') + in_flight('n') + in_flight('l'), call('ZCARD', RETRY), call('ZCARD', SCHEDULED),
  call('ZCARD', DLQ), call('ZCARD', LOST), call('HGET', META, 'paused') == '1' and 1 or 0,
  failed(counters) and {} or counters,
}
