-- amend: fields of a dead letter's hash -> new values, others gone, where it is still the one that somebody looked at
-- KEYS     house, then: message
-- ARGV     id died removed, then names to remove and fields and values; died is its score, removed counts the names
-- RETURNS  "amended" | "missing" (no such dead letter, or its body ran out) | "changed" (it died again meanwhile)
--- include house
--- include place
--- include limits
--- include turns
--- include ending
local id, died, removed = ARGV[1], number(ARGV[2]), number(ARGV[3], 0)

local score = is_dead_letter(id) and call('ZSCORE', DLQ, id)
if not score or not read_body(id) then return 'missing' end
if tonumber(score) ~= died then return 'changed' end
-- In portions: Lua unpacks no more than 8,000 values at once.
for a = 4 + removed, #ARGV, 1000 do call('HSET', message_key(id), unpack(ARGV, a, math.min(a + 999, #ARGV))) end
for a = 4, 3 + removed do call('HDEL', message_key(id), ARGV[a]) end
return 'amended'
