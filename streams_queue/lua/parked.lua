-- parked: reads for which keys messages are parked, and why; writes nothing
-- KEYS     house
-- ARGV     limit
-- RETURNS  {messages that are parked, per key: {id of the first, how many are parked, epoch seconds until which the key is
--          paused, epoch seconds at which its rate has room; "" for neither}}. Keys that a time holds up come first.
--- include house
--- include limits
--- include turns
local limit, now = number(ARGV[1], 100), server_time()
local field = agreed('limit_key')
local met, rows = {}, {}

local function add(key, id)
  if met[key] then return end
  met[key] = true
  local waiting = try('ZCARD', of_key('parked', key))
  rows[#rows + 1] = {id, failed(waiting) and 1 or math.max(1, waiting), unpack(held_until(key, now))}
end

-- The key of a message that is parked.
local function key_at(id)
  local value = field and try('HGET', message_key(id), field)
  return value and not failed(value) and key_of({[field] = value}) or nil
end

for _, key in ipairs(call('ZRANGE', WAKE, 0, limit - 1)) do
  local first = first_parked(key)
  if first then add(key, first) end
end
for _, id in ipairs(call('ZRANGE', PARKED, 0, limit - 1)) do
  local key = key_at(id)
  if key then add(key, first_parked(key) or id) end
end
return {call('ZCARD', PARKED), rows}
