-- register: an unknown number of shards -> the agreed one; of an agreed one it changes nothing, but gives it the queue's id
--           where an older version gave none
-- KEYS     registry
-- ARGV     count key servers id; an empty count agrees on nothing
-- RETURNS  the agreement as a flat list of names and values, empty where there is none
local registry = KEYS[1]
local agreed = redis.call('HGETALL', registry)
if ARGV[1] == '' then return agreed end
if #agreed == 0 then
  redis.call('HSET', registry, 'count', ARGV[1], 'key', ARGV[2], 'servers', ARGV[3], 'version', '1', 'id', ARGV[4])
elseif redis.call('HGET', registry, 'count') and not redis.call('HGET', registry, 'id') then
  redis.call('HSET', registry, 'id', ARGV[4])
end
return redis.call('HGETALL', registry)
