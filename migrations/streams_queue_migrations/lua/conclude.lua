-- conclude: a move under way -> done
-- KEYS     house
-- ARGV     summary; a JSON object of what was done and found
-- RETURNS  1
--- include house
local wrong = wrong_type()
if wrong then return wrong end
local now = server_time()
call('HSET', META, 'migration', 'done', 'migration_report', ARGV[1])
call('HSETNX', META, 'migrated_at', seconds(now))
call('HDEL', META, 'migration_began')
return 1
