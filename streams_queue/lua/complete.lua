-- complete: processing -> done
-- KEYS     house, then per message: message lock done
-- ARGV     consumer result_ttl, then per message: id entry delivery result
-- RETURNS  per message: "completed" | "stale"; a finish sent again after a lost reply answers as it did before
--- include house
--- include place
--- include limits
--- include turns
--- include ending
--- include ownership
local consumer, result_ttl = ARGV[1], number(ARGV[2], 300)

local wrong = wrong_type()
if wrong then return wrong end
local lease_ms = number(agreed('lease_ms'), 0)

local FIELDS = {'timestamp', '_sq_entry', '_sq_owner', '_sq_deliveries', '_sq_listener', 'dedup_key', 'user_id'}
local ended = {}

local function complete(id, entry, delivery, result, owner)
  local body, token = read_body(id, FIELDS), token_of(entry, delivery)
  if ended[id] == token then return 'completed' end  -- twice in one call
  if not holds(id, body, consumer, entry, delivery, lease_ms, owner) then
    return settled_before(id, read_body(id), token) or 'stale'
  end
  end_message(id, body, 'completed', token, result, result ~= '' and result_ttl or EXPIRED_TTL)
  ended[id] = token
  count('completed_messages')
  return 'completed'
end

local locks = {}
for a = 3, #ARGV, 4 do locks[#locks + 1] = lock_key(ARGV[a]) end
local owners, answers = call('MGET', unpack(locks)), {}
for a = 3, #ARGV, 4 do
  local n = #answers + 1
  answers[n] = complete(ARGV[a], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], owners[n])
end
end_messages()
return finish(answers)
