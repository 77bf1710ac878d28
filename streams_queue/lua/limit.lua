-- limit: the limits of the queue -> others, all at once
-- KEYS     house
-- ARGV     (none), then fields and values; a limit that is not among them is none from now on
-- RETURNS  1
--- include house
local wrong = wrong_type()
if wrong then return wrong end

local wanted = {}
for a = 1, #ARGV, 2 do wanted[ARGV[a]] = true end
local found = call('HGETALL', META)
for i = 1, #found, 2 do
  if string.sub(found[i], 1, 6) == 'limit_' and not wanted[found[i]] then call('HDEL', META, found[i]) end
end
if #ARGV > 0 then call('HSET', META, unpack(ARGV)) end
if call('EXISTS', PARKED) == 1 then call('HSET', META, 'parked_cursor', '0') end
return 1
