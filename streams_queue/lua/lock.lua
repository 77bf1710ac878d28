-- lock: free -> held by the owner. A shared lock is also taken by whoever bears the name that holds it, and then lasts anew.
-- KEYS     lock
-- ARGV     owner ttl_ms shared
-- RETURNS  0 when another holds it, 1 when the owner has taken it, 2 when it held it before and holds it on
local owner = redis.pcall('GET', KEYS[1])
if type(owner) == 'table' and ARGV[3] == '1' then return redis.error_reply('WRONGTYPE ' .. KEYS[1] .. ' is no lock') end
if owner and not (owner == ARGV[1] and ARGV[3] == '1') then return 0 end
redis.call('DEL', KEYS[1])  -- allowed at maxmemory, and what follows an allowed write is allowed too
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return owner and 2 or 1
