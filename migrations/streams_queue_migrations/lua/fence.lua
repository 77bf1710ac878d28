-- fence: a shard that takes messages of whoever knows it -> only of those who know the number of shards
-- KEYS     house
-- ARGV     version
-- RETURNS  the version in force
--- include house
local wrong = wrong_type()
if wrong then return wrong end
local version = math.max(number(ARGV[1], 0), number(agreed('shards_version'), 0))
call('HSET', META, 'shards_version', version)
return version
