-- first_of_user: reads a user's first message in main; forgets what is no longer there
-- KEYS     house, then: user
-- ARGV     (none)
-- RETURNS  its id, or nothing
--- include house
for _, id in ipairs(call('ZRANGE', KEYS[HOUSE + 1], 0, 99)) do
  if call('ZSCORE', MAIN, id) then return id end
  if not (call('ZSCORE', RETRY, id) or call('ZSCORE', SCHEDULED, id)) then call('ZREM', KEYS[HOUSE + 1], id) end
end
return false
