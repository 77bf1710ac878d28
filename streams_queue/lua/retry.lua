-- retry: processing -> retry, or -> dead letter past max_retries. With an empty entry it is an order from outside,
--        for a message that nobody's delivery is asked about; `delivery` then names the order, which counts once.
-- KEYS     house, then per message: message lock done
-- ARGV     consumer max_retries dead_letter_ttl dedup_expiry, then per message: id entry delivery delay reason error
-- RETURNS  per message: "retry" | "error" (now a dead letter) | "stale" | "gone" (it had left the line, and was dropped)
--- include house
--- include place
--- include ownership
local consumer, max_retries, dead_letter_ttl, dedup_expiry = ARGV[1], number(ARGV[2], 0), ARGV[3], number(ARGV[4], 3600)

local wrong = wrong_type()
if wrong then return wrong end
local lease_ms, now = number(agreed('lease_ms'), 0), server_time()

local function wait_for_retry(id, body, token, retries, delay, error)
  local letter, entry = letter_of(body), live_entry(body)
  if entry then drop_entry(letter, entry) end
  leave_all_sets(id)
  call('ZADD', RETRY, now + delay, id)
  call('HSET', message_key(id), 'status', 'retry', 'retry_count', retries, 'next_retry', seconds(now + delay),
       '_sq_entry', letter, '_sq_settled', token)
  if error ~= '' then call('HSET', message_key(id), 'last_error', error, 'last_error_time', seconds(now)) end
  call('HDEL', message_key(id), '_sq_owner')
  call('DEL', lock_key(id))
  if body._sq_ttl then arm_body(id, body._sq_ttl, delay) end
  if is_slot(body.dedup_key) and try('GET', body.dedup_key) == id then
    call('EXPIRE', body.dedup_key, whole_seconds(delay + dedup_expiry))
  end
  index_user(body, id, now + delay, body._sq_ttl, delay)
  count('retry_count')
  tell(body._sq_listener, id, 'retry', error)
  return 'retry'
end

local function fail(id, entry, delivery, delay, reason, error)
  local body, token = read_body(id), token_of(entry, delivery)
  local refused = refusal(id, body, consumer, entry, delivery, lease_ms)
  if refused then return refused end
  local retries = number(body.retry_count, 0) + 1
  if retries <= max_retries then return wait_for_retry(id, body, token, retries, number(delay, 0), error) end
  if error == '' then error = call('HGET', message_key(id), 'last_error') or 'given up after ' .. max_retries .. ' retries' end
  bury(id, body, now, dead_letter_ttl, reason, error)
  call('HSET', message_key(id), '_sq_settled', token, 'last_error', error, 'last_error_time', seconds(now))
  return 'error'
end

local answers = {}
for a = 5, #ARGV, 6 do
  answers[#answers + 1] = fail(ARGV[a], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], ARGV[a + 4], ARGV[a + 5])
end
return finish(answers)
