-- dead_letter: processing -> dead letter. With an empty entry it is an order from outside, as in retry.
-- KEYS     house, then per message: message lock done
-- ARGV     consumer dead_letter_ttl, then per message: id entry delivery reason error
-- RETURNS  per message: "error" (it is a dead letter now, or was one) | "stale" | "gone" (it had left the line, and was
--          dropped)
--- include house
--- include place
--- include limits
--- include turns
--- include ending
--- include ownership
local consumer, dead_letter_ttl = ARGV[1], ARGV[2]

local wrong = wrong_type()
if wrong then return wrong end
local lease_ms, now = number(agreed('lease_ms'), 0), server_time()

local function give_up(id, entry, delivery, reason, error)
  local body = read_body(id)
  local refused = refusal(id, body, consumer, entry, delivery, lease_ms)
  if refused then return refused end
  bury(id, body, now, dead_letter_ttl, reason, error)
  call('HSET', message_key(id), '_sq_settled', token_of(entry, delivery))
  return 'error'
end

local answers = {}
for a = 3, #ARGV, 5 do
  answers[#answers + 1] = give_up(ARGV[a], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], ARGV[a + 4])
end
return finish(answers)
