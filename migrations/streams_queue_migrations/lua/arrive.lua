-- arrive: nothing -> a body that nobody sees yet, until the message has left its former shard
-- KEYS     house, then per message: message done arriving
-- ARGV     owner from, then per message: id set score ttl_ms slot_ms count, then count fields and values
-- RETURNS  per message: 1, or 0 where this shard knows the message: it is here, or was worked on here; or where a later
--          mover has brought it, owners being in the order of their locks
--- include house
--- include place
local owner, from = ARGV[1], ARGV[2]

local wrong = wrong_type()
if wrong then return wrong end
local answers, a = {}, 3

local function arrive(id, set, score, ttl_ms, slot_ms, first, last)
  if place_of(id) or call('EXISTS', done_key(id)) == 1 then return 0 end
  local key = arriving_key(id)
  local other = string.match(call('HGET', key, '_sq_move') or '', '(%S+) %S+$')
  if other and other > owner then return 0 end
  call('DEL', key)
  for at = first, last, 1000 do call('HSET', key, unpack(ARGV, at, math.min(at + 999, last))) end
  call('HSET', key, '_sq_move', table.concat({set, score, slot_ms, owner, from}, ' '))
  if ttl_ms > 0 then call('PEXPIRE', key, ttl_ms) end
  return 1
end

while a <= #ARGV do
  local last = a + 5 + 2 * number(ARGV[a + 5], 0)
  answers[#answers + 1] = arrive(ARGV[a], ARGV[a + 1], ARGV[a + 2], number(ARGV[a + 3], -1), ARGV[a + 4], a + 6, last)
  a = last + 1
end
return answers
