-- prune: consumers that hold nothing -> gone: the one named, and all that gave no sign for a while
-- KEYS     house
-- ARGV     consumer idle_ms
-- RETURNS  how many were deleted
--- include house
local consumer, idle_ms = ARGV[1], number(ARGV[2])

local deleted = 0
for _, letter in ipairs(PRIORITIES) do
  local consumers = try('XINFO', 'CONSUMERS', STREAMS[letter], GROUP)
  if not failed(consumers) then
    for _, info in ipairs(consumers) do
      local seen = {}
      for i = 1, #info, 2 do seen[info[i]] = info[i + 1] end
      -- DELCONSUMER forgets what the consumer still holds: only in the same script that saw it hold nothing.
      if seen.pending == 0 and (seen.name == consumer or seen.idle >= idle_ms) then
        call('XGROUP', 'DELCONSUMER', STREAMS[letter], GROUP, seen.name)
        deleted = deleted + 1
      end
    end
  end
end
return deleted
