-- complete: processing -> done
-- KEYS     house, then per message: message lock done
-- ARGV     consumer result_ttl, then per message: id entry delivery result
-- RETURNS  per message: "completed" | "stale"; a finish sent again after a lost reply answers as it did before
--- include house
--- include place
--- include ownership
local consumer, result_ttl = ARGV[1], number(ARGV[2], 300)

local wrong = wrong_type()
if wrong then return wrong end
local lease_ms = number(call('HGET', META, 'lease_ms'), 0)

local function complete(id, entry, delivery, result)
  local body, token = read_body(id), token_of(entry, delivery)
  if not holds(id, body, consumer, entry, delivery, lease_ms) then return settled_before(id, body, token) or 'stale' end
  end_message(id, body, 'completed', token, result, result ~= '' and result_ttl or EXPIRED_TTL)
  count('completed_messages')
  return 'completed'
end

local answers = {}
for a = 3, #ARGV, 4 do answers[#answers + 1] = complete(ARGV[a], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3]) end
return finish(answers)
