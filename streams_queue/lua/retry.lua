-- retry: processing -> retry, or -> dead letter past max_retries. With an empty entry it is an order from outside,
--        for a message that nobody's delivery is asked about; `delivery` then names the order, which counts once.
--        With a key, that key is paused for the delay and nothing is charged: a message of this key -> queued where it
--        stood, another waits.
-- KEYS     house, then per message: message lock done
-- ARGV     consumer max_retries dead_letter_ttl dedup_expiry, then per message: id entry delivery delay reason error key
-- RETURNS  per message: "retry" | "queued" (with its key paused) | "error" (now a dead letter) | "stale" | "gone" (it had
--          left the line, and was dropped)
--- include house
--- include place
--- include limits
--- include turns
--- include ending
--- include ownership
local consumer, max_retries, dead_letter_ttl, dedup_expiry = ARGV[1], number(ARGV[2], 0), ARGV[3], number(ARGV[4], 3600)

local wrong = wrong_type()
if wrong then return wrong end
local lease_ms, now = number(agreed('lease_ms'), 0), server_time()

local function keep_slot(id, body, delay)
  if is_slot(body.dedup_key) and try('GET', body.dedup_key) == id then
    call('EXPIRE', body.dedup_key, whole_seconds(delay + dedup_expiry))
  end
end

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
  keep_slot(id, body, delay)
  index_user(body, id, now + delay, body._sq_ttl, delay)
  leave_turns(body, id, now)
  tell(body._sq_listener, id, 'retry', error)
  return 'retry'
end

local function pause_key(key, delay)
  local pause, wanted = of_key('pause', key), math.ceil(delay * 1000)
  if wanted > 0 and call('PTTL', pause) < wanted then call('SET', pause, consumer, 'PX', wanted) end
end

-- In line where it stood, first of its key when the pause is over.
local function wait_for_key(id, body, token, key, delay)
  wait_again(key, id)
  park(letter_of(body), live_entry(body), id, key, now + delay)
  call('HSET', message_key(id), 'status', 'queued', '_sq_settled', token)
  call('HDEL', message_key(id), '_sq_owner')
  call('DEL', lock_key(id))
  if body._sq_ttl then arm_body(id, body._sq_ttl, delay) end
  keep_slot(id, body, delay)
  index_user(body, id, call('ZSCORE', MAIN, id), body._sq_ttl, delay)
  tell(body._sq_listener, id, 'queued')
  return 'queued'
end

local function hold_up(id, body, token, key, delay, error)
  key = agreed('limit_key') and redis.sha1hex(agreed('limit_key') .. '=' .. key)
  if key then
    pause_key(key, delay)
    count('paused_keys')
  end
  if key and key == key_of(body) and live_entry(body) then return wait_for_key(id, body, token, key, delay) end
  return wait_for_retry(id, body, token, number(body.retry_count, 0), delay, error)
end

local function fail(id, entry, delivery, delay, reason, error, key)
  local body, token = read_body(id), token_of(entry, delivery)
  local refused = refusal(id, body, consumer, entry, delivery, lease_ms)
  if refused then return refused end
  if key ~= '' then return hold_up(id, body, token, key, number(delay, 0), error) end
  local retries = number(body.retry_count, 0) + 1
  if retries <= max_retries then
    count('retry_count')
    return wait_for_retry(id, body, token, retries, number(delay, 0), error)
  end
  if error == '' then error = call('HGET', message_key(id), 'last_error') or 'given up after ' .. max_retries .. ' retries' end
  bury(id, body, now, dead_letter_ttl, reason, error)
  call('HSET', message_key(id), '_sq_settled', token, 'last_error', error, 'last_error_time', seconds(now))
  return 'error'
end

local answers = {}
for a = 5, #ARGV, 7 do answers[#answers + 1] = fail(unpack(ARGV, a, a + 6)) end
return finish(answers)
