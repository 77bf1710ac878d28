-- turn: a number of shards -> another one, all programs to go by it; or -> the same, nothing being moved any more
-- KEYS     registry
-- ARGV     count settled; settled is 1 where nothing is moved any more
-- RETURNS  the registry as a flat list of names and values; unchanged where another number is under way
local registry, wanted, settled = KEYS[1], ARGV[1], ARGV[2] == '1'
local count, moving, version = unpack(redis.call('HMGET', registry, 'count', 'moving', 'version'))
if count and settled and count == wanted then
  redis.call('HDEL', registry, 'moving')
elseif count and not settled and not moving and count ~= wanted then
  redis.call('HSET', registry, 'count', wanted, 'former', count, 'moving', '1', 'version', (tonumber(version) or 1) + 1)
end
return redis.call('HGETALL', registry)
