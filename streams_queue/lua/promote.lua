-- promote: retry or scheduled, due -> queued, at the tail; wakes the keys whose time has come
-- KEYS     house
-- ARGV     limit
-- RETURNS  {more is due (0 or 1), messages promoted, seconds until something is due ("" where nothing waits for a time)}
--- include house
--- include place
--- include limits
--- include turns
--- include ending
--- include promotion
local wrong = wrong_type()
if wrong then return wrong end
local now, limit = server_time(), number(ARGV[1], 500)
local more, promoted = promote_due(now, limit)
if wake_due(now, limit) then more = 1 end
return finish({more, promoted, until_due(now)})
