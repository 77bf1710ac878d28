-- stats: reads the counts of one moment
-- KEYS     house
-- ARGV     (none)
-- RETURNS  {main, processing, retry, scheduled, dead, lost, paused (0 or 1), counters as a flat list, seconds that the oldest
--          waiting message has stood in line ("" where none waits), workers that gave a sign within a lease, messages that wait for
--          their key's turn, those in main of high priority, of low}
--- include house
--- include flight
local counters = try('HGETALL', STATS)

local function live_workers()
  local lease_ms, names, count = number(agreed('lease_ms'), 0), {}, 0
  for _, letter in ipairs(PRIORITIES) do
    for _, seen in ipairs(info_about('CONSUMERS', STREAMS[letter], GROUP)) do
      if not NO_WORKERS[seen.name] and not names[seen.name] and seen.idle < lease_ms then
        names[seen.name], count = true, count + 1
      end
    end
  end
  return count
end

local since = waiting_since()
return {
  call('ZCARD', MAIN), in_flight('h') + in_flight('n') + in_flight('l'), call('ZCARD', RETRY), call('ZCARD', SCHEDULED),
  call('ZCARD', DLQ), call('ZCARD', LOST), agreed('paused') == '1' and 1 or 0,
  failed(counters) and {} or counters, since and seconds(math.max(0, server_time() - since)) or '', live_workers(),
  call('ZCARD', PARKED), call('ZCARD', LINES.h), call('ZCARD', LINES.l),
}
