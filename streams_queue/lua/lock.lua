-- lock: free -> held by the owner. A shared lock is also taken by whoever bears the name that holds it, and then lasts anew.
-- KEYS     lock
-- ARGV     owner ttl_ms shared
-- RETURNS  1 when the owner holds it now, else 0
local taken = redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])
if taken then return 1 end
if ARGV[3] == '1' and redis.pcall('GET', KEYS[1]) == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
