-- promote: retry or scheduled, due -> queued, at the tail
-- KEYS     house
-- ARGV     limit
-- RETURNS  {more is due (0 or 1), messages promoted}
--- include house
--- include place
--- include limits
--- include turns
--- include ending
--- include promotion
local wrong = wrong_type()
if wrong then return wrong end
local more, promoted = promote_due(server_time(), number(ARGV[1], 500))
return finish({more, promoted})
