-- oldest: reads since when the message waits that has stood in line for the longest; writes nothing
-- KEYS     house
-- ARGV     (none)
-- RETURNS  {server time, time since when it stands in line, or "" where nobody waits}
--- include house
local since
local function meet(entry)
  local came = tonumber(string.match(entry, '^%d+')) / 1000
  if not since or came < since then since = came end
end

for _, letter in ipairs(PRIORITIES) do
  local stream, after = STREAMS[letter], '-'
  for _, group in ipairs(info_about('GROUPS', stream)) do
    if group.name == GROUP then
      after = '(' .. group['last-delivered-id']
      for keeper in pairs(NO_WORKERS) do
        local kept = call('XPENDING', stream, GROUP, '-', '+', 1, keeper)[1]
        if kept then meet(kept[1]) end
      end
    end
  end
  local first = call('XRANGE', stream, after, '+', 'COUNT', 1)[1]
  if first then meet(first[1]) end
end
return {seconds(server_time()), since and seconds(since) or ''}
