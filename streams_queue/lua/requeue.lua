-- requeue: dead letter -> queued, at the tail, its counts started anew
-- KEYS     house, then per message: message lock done
-- ARGV     dedup_expiry, then per message: id
-- RETURNS  per message: "queued" | "missing" (no such dead letter) | "expired" (its body had run out)
--- include house
--- include place
--- include limits
--- include turns
--- include ending
--- include restart
local dedup_expiry = number(ARGV[1], 3600)

local wrong = wrong_type()
if wrong then return wrong end
local now = server_time()

local function requeue(id)
  if not call('ZSCORE', DLQ, id) then return 'missing' end
  local body = read_body(id)
  if not body then
    expire_message(id, now)
    return 'expired'
  end
  local score = next_score(now)
  drop_parked(id)
  local entry = join_line(id, letter_of(body), score)
  call('HSET', message_key(id), 'status', 'queued', '_sq_entry', entry)
  restart(id, body, dedup_expiry)
  arm_body(id, body._sq_ttl)
  index_user(body, id, score, body._sq_ttl)
  enter_turns(body, id, score)
  count('requeued_messages')
  tell(body._sq_listener, id, 'queued')
  return 'queued'
end

local answers = {}
for a = 2, #ARGV do answers[#answers + 1] = requeue(ARGV[a]) end
return finish(answers)
