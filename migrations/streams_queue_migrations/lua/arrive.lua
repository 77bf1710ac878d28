-- arrive: nothing -> a body that nobody sees yet, until the message has left its former shard
-- KEYS     house, then per message: arriving
-- ARGV     owner from version, then per message: id set score ttl_ms slot_ms hindrance count, then count fields and
--          values
-- RETURNS  per message: 1, or 0 where a later mover has brought it, owners being in the order of their locks;
--          an error for all where the number of shards was changed again since
--- include house
local owner, from = ARGV[1], ARGV[2]

local wrong = wrong_type() or outdated(ARGV[3])
if wrong then return wrong end
local answers, a = {}, 4

local function arrive(id, set, score, ttl_ms, slot_ms, hindrance, first, last)
  local key = arriving_key(id)
  local other = string.match(call('HGET', key, '_sq_move') or '', '(%S+) %S+$')
  if other and other > owner then return 0 end
  call('DEL', key)
  for at = first, last, 1000 do call('HSET', key, unpack(ARGV, at, math.min(at + 999, last))) end
  call('HSET', key, '_sq_move', table.concat({set, score, slot_ms, hindrance, owner, from}, ' '))
  if ttl_ms > 0 then call('PEXPIRE', key, ttl_ms) end
  return 1
end

while a <= #ARGV do
  local last = a + 6 + 2 * number(ARGV[a + 6], 0)
  local id, set, score, ttl_ms, slot_ms, hindrance = unpack(ARGV, a, a + 5)
  answers[#answers + 1] = arrive(id, set, score, number(ttl_ms, -1), slot_ms, hindrance, a + 7, last)
  a = last + 1
end
return answers
