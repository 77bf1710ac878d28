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
