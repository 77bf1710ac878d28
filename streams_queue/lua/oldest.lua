-- oldest: reads since when the message waits that has stood in line for the longest; writes nothing
-- KEYS     house
-- ARGV     (none)
-- RETURNS  {server time, time since when it stands in line, or "" where nobody waits}
--- include house
--- include flight
local since = waiting_since()
return {seconds(server_time()), since and seconds(since) or ''}
