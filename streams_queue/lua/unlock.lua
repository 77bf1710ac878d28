-- unlock: held by the owner -> free
-- KEYS     lock
-- ARGV     owner
-- RETURNS  1 when it is free now, 0 when somebody else holds it
local owner = redis.pcall('GET', KEYS[1])
if owner == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return owner and 0 or 1
