-- register: an unknown number of shards -> the agreed one; of an agreed one it changes nothing
-- KEYS     registry
-- ARGV     count key servers; an empty count agrees on nothing
-- RETURNS  the agreement as a flat list of names and values, empty where there is none
local agreed = redis.call('HGETALL', KEYS[1])
if #agreed > 0 or ARGV[1] == '' then return agreed end
local new = {'count', ARGV[1], 'key', ARGV[2], 'servers', ARGV[3], 'version', '1'}
redis.call('HSET', KEYS[1], unpack(new))
return new
