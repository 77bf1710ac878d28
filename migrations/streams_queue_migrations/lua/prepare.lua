-- prepare: a queue of the old layout -> one with consumer groups, made at 0, and a schema; the state of the move noted
-- KEYS     house
-- ARGV     schema index_users
-- RETURNS  1 where it was moved before, else 0
--- include house
local schema, index_users = ARGV[1], ARGV[2] == '1'

local wrong = wrong_type()
if wrong then return wrong end
local now = server_time()
local before = call('HGET', META, 'migration') == 'done' and 1 or 0
for _, letter in ipairs(PRIORITIES) do
  try('XGROUP', 'CREATE', STREAMS[letter], GROUP, '0', 'MKSTREAM')  -- BUSYGROUP where it is there already
end
call('HSET', META, 'schema', schema)
if before == 0 then
  call('HSET', META, 'migration', 'under way')
  call('HSETNX', META, 'migration_began', seconds(now))
end
if index_users then call('HSET', META, 'user_index', '1') end
return before
