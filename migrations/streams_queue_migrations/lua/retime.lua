-- retime: scores of main that lie ahead of the clock (milliseconds, a wrong clock) -> now, in the same order: messages
--         accepted from now on come behind them, as they come behind them in the stream
-- KEYS     house
-- ARGV     limit
-- RETURNS  {more of them (0 or 1), scores changed}
--- include house
--- include place
--- include limits
--- include turns
--- include ending
local limit = number(ARGV[1], 500)
local AHEAD = 60  -- seconds that a producer's clock may be ahead

local wrong = wrong_type()
if wrong then return wrong end
local now = server_time()
local ahead = call('ZRANGEBYSCORE', MAIN, '(' .. seconds(now + AHEAD), '+inf', 'LIMIT', 0, limit)
for _, id in ipairs(ahead) do call('ZADD', MAIN, 'XX', next_score(now), id) end
return {#ahead == limit and 1 or 0, #ahead}
