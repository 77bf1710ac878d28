-- of_user: reads a user's unfinished messages, where the queue keeps that index; writes nothing
-- KEYS     house, then: user
-- ARGV     limit first; how many, and how many before them to leave out
-- RETURNS  {1 where the queue keeps the index, else 0, ids in the order of the line}
--- include house
local limit, first = number(ARGV[1], 1), number(ARGV[2], 0)
local ids = call('ZRANGE', KEYS[HOUSE + 1], first, first + limit - 1)
return {agreed('user_index') == '1' and 1 or 0, ids}
