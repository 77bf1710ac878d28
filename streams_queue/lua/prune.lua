-- prune: consumers that hold nothing -> gone: the one named, and all that gave no sign for a while;
--        dead letters whose bodies ran out -> lost, the oldest 100 looked at
-- KEYS     house
-- ARGV     consumer idle_ms
-- RETURNS  how many consumers were deleted
--- include house
--- include place
--- include limits
--- include turns
--- include ending
local consumer, idle_ms = ARGV[1], number(ARGV[2])
local HALF_DONE = 60  -- seconds in which a script from outside may still be writing the body of its dead letter

local wrong = wrong_type()
if wrong then return wrong end
local now = server_time()

local deleted = 0
for _, letter in ipairs(PRIORITIES) do
  for _, seen in ipairs(info_about('CONSUMERS', STREAMS[letter], GROUP)) do
    -- DELCONSUMER forgets what the consumer still holds: only in the same script that saw it hold nothing.
    if seen.pending == 0 and (seen.name == consumer or seen.idle >= idle_ms) then
      call('XGROUP', 'DELCONSUMER', STREAMS[letter], GROUP, seen.name)
      deleted = deleted + 1
    end
  end
end
for _, id in ipairs(call('ZRANGEBYSCORE', DLQ, '-inf', now - HALF_DONE, 'LIMIT', 0, 100)) do
  if not read_body(id) then expire_message(id, now) end
end
return finish(deleted)
