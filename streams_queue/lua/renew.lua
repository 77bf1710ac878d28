-- renew: processing -> processing, lease and body's time to live afresh; an empty lock_ms is the lease
-- KEYS     house, then per message: message lock
-- ARGV     consumer lock_ms, then per message: id entry delivery
-- RETURNS  per message: "held" | "lost"
--- include house
--- include place
--- include limits
--- include turns
--- include ending
--- include ownership
local consumer = ARGV[1]

local wrong = wrong_type()
if wrong then return wrong end
local lease_ms = number(agreed('lease_ms'), number(ARGV[2], 0))  -- the meta hash may have been deleted
local lock_ms = math.max(lease_ms, number(ARGV[2], 0))

local function renew(id, entry, delivery)
  local body = read_body(id)
  if lease_ms == 0 or not holds(id, body, consumer, entry, delivery, lease_ms) then return 'lost' end
  -- XCLAIM comes first: it is allowed at maxmemory, and what follows an allowed write is allowed too.
  try('XCLAIM', STREAMS[letter_of(body)], GROUP, consumer, 0, live_entry(body), 'JUSTID')  -- the stream may be gone
  call('SET', lock_key(id), consumer, 'PX', lock_ms)
  if body._sq_ttl then arm_body(id, body._sq_ttl) end
  return 'held'
end

local answers = {}
for a = 3, #ARGV, 3 do answers[#answers + 1] = renew(ARGV[a], ARGV[a + 1], ARGV[a + 2]) end
return answers
