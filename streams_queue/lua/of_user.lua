-- of_user: reads a user's unfinished messages, where the queue keeps that index; writes nothing
-- KEYS     house, then: user
-- ARGV     limit
-- RETURNS  {1 where the queue keeps the index, else 0, ids in the order of the line}
--- include house
local ids = call('ZRANGE', KEYS[HOUSE + 1], 0, number(ARGV[1], 1) - 1)
return {call('HGET', META, 'user_index') == '1' and 1 or 0, ids}
