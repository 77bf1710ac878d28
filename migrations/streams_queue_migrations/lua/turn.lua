-- turn: a number of shards -> another one, all programs to go by it; or -> the same, nothing being moved any more
-- KEYS     registry
-- ARGV     count settled version least; settled is 1 where nothing is moved any more, which counts for this version alone;
--          least is the version that shards know of, where the registry fell back behind it
-- RETURNS  the registry as a flat list of names and values; unchanged where another number is under way
local registry, wanted, settled, mine, least = KEYS[1], ARGV[1], ARGV[2] == '1', ARGV[3], tonumber(ARGV[4])
local count, moving, version = unpack(redis.call('HMGET', registry, 'count', 'moving', 'version'))
if count and least > (tonumber(version) or 1) then
  version = ARGV[4]
  redis.call('HSET', registry, 'version', version)
end
if count and settled and count == wanted and version == mine then
  redis.call('HDEL', registry, 'moving')
elseif count and not settled and not moving and count ~= wanted then
  redis.call('HSET', registry, 'count', wanted, 'former', count, 'moving', '1', 'version', (tonumber(version) or 1) + 1)
end
return redis.call('HGETALL', registry)
