-- register: an unknown number of shards -> the agreed one; of an agreed one it changes nothing, but gives it the queue's id
--           where an older version gave none
-- KEYS     registry
-- ARGV     count key servers id; an empty count agrees on nothing
-- RETURNS  the agreement as a flat list of names and values, empty where there is none
local registry = KEYS[1]
if ARGV[1] ~= '' then
  if redis.call('EXISTS', registry) == 0 then
    redis.call('HSET', registry, 'count', ARGV[1], 'key', ARGV[2], 'servers', ARGV[3], 'version', '1')
  end
  redis.call('HSETNX', registry, 'id', ARGV[4])
end
return redis.call('HGETALL', registry)
