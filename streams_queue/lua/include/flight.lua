-- How many messages of a priority workers hold: what is pending, less what only waits.
local function in_flight(letter)
  local summary = try('XPENDING', STREAMS[letter], GROUP)
  if failed(summary) then return 0 end  -- nobody has joined the queue so far
  local held = summary[1]
  for _, consumer in ipairs(summary[4] or {}) do
    if NO_WORKERS[consumer[1]] then held = held - tonumber(consumer[2]) end
  end
  return held
end

-- Since when the message waits that has stood in line for the longest, by the server's clock; nothing where none waits.
-- Waiting is what no worker holds: not delivered yet, or kept by one of those who are nobody. An entry's id says when it
-- came into line.
local function waiting_since()
  local since
  local function meet(entry)
    local came = entry and tonumber(string.match(entry[1], '^%d+')) / 1000
    if came and (not since or came < since) then since = came end
  end
  for _, letter in ipairs(PRIORITIES) do
    local stream, after = STREAMS[letter], '-'
    for _, group in ipairs(info_about('GROUPS', stream)) do
      if group.name == GROUP then
        after = '(' .. group['last-delivered-id']
        for keeper in pairs(NO_WORKERS) do meet(call('XPENDING', stream, GROUP, '-', '+', 1, keeper)[1]) end
      end
    end
    meet(call('XRANGE', stream, after, '+', 'COUNT', 1)[1])
  end
  local parked = call('ZRANGE', PARKED, 0, 0, 'WITHSCORES')
  if parked[2] then since = math.min(since or math.huge, parked[2] / 1000) end
  return since
end
