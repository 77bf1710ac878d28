-- update: fields of a message's hash -> new values, its time to live afresh and never shorter
-- KEYS     house, then: message
-- ARGV     id types, then fields and values; types is a JSON object with the type of each value that is not text
-- RETURNS  1, or 0 when there is no such message
--- include house
--- include place
--- include limits
--- include turns
--- include ending
local id = ARGV[1]

local body = read_body(id)
if not body then return 0 end
for from = 3, #ARGV, 1000 do  -- Lua unpacks no more than 8,000 values at once
  call('HSET', message_key(id), unpack(ARGV, from, math.min(from + 999, #ARGV)))
end
if body._sq_types then
  local known, types = pcall(cjson.decode, body._sq_types)
  if not known or type(types) ~= 'table' then types = {} end
  local updated = cjson.decode(ARGV[2])
  for a = 3, #ARGV, 2 do types[ARGV[a]] = updated[ARGV[a]] end
  call('HSET', message_key(id), '_sq_types', next(types) and cjson.encode(types) or '')
end
if agreed('limit_key') then change_key(id, body) end
local ttl, left = number(body._sq_ttl), call('TTL', message_key(id))
if ttl and left ~= -1 and left < ttl then arm_body(id, ttl) end
return 1
