-- settle: a body that nobody sees -> the message, in the set and with the score that it had; or -> nothing
-- KEYS     house, then per message: message lock done arriving moved
-- ARGV     version, then per message: id action owner; action is enter, or discard of what this owner has brought
-- RETURNS  per message: "entered" | "known" (this shard has another with its id) | "expired" (its body ran out on its
--          way) | "settled" (before) | "gone" (discarded, or another's);
--          an error for all where the number of shards was changed again since
--- include house
--- include place
--- include limits
--- include turns
--- include ending
local SETS = {retry = RETRY, scheduled = SCHEDULED, dlq = DLQ}

local wrong = wrong_type() or outdated(ARGV[1])
if wrong then return wrong end
local now = server_time()

local function words_of(text)
  local words = {}
  for word in string.gmatch(text, '%S+') do append(words, word) end
  return words
end

local function take_slot(body, id, ttl_ms)
  if ttl_ms > 0 and is_slot(body.dedup_key) then call('SET', body.dedup_key, id, 'NX', 'PX', ttl_ms) end
end

-- At the tail of the stream, with the score that it had: XADD comes first, at maxmemory it is refused.
local function join_main(id, letter, score)
  local entry = call('XADD', STREAMS[letter], '*', 'id', id)
  call('ZADD', MAIN, score, id)
  if LINES[letter] then call('ZADD', LINES[letter], score, id) end
  return letter .. entry
end

-- In portions: Lua unpacks no more than 8,000 values at once.
local function write_body(id, flat, ttl_ms)
  call('DEL', message_key(id))  -- an orphan's fields
  for at = 1, #flat, 1000 do call('HSET', message_key(id), unpack(flat, at, math.min(at + 999, #flat))) end
  call('HDEL', message_key(id), '_sq_move')
  if ttl_ms > 0 then call('PEXPIRE', message_key(id), ttl_ms) end
end

-- The key waits here as it did there: its pause and what is spent of its rates.
local function keep_owing(limit, bucket, owed)
  local rate = rate_of(agreed(limit))
  if rate and owed > 0 then keep_owed(bucket, math.max(owed, owed_of(rate, try('GET', bucket), now)), now) end
end
local function hinder(body, owner, pause_ms, at_work, at_enqueue)
  local key = key_of(body)
  if not key then return end
  local pause = of_key('pause', key)
  if number(pause_ms, 0) > math.max(0, call('PTTL', pause)) then call('SET', pause, owner, 'PX', pause_ms) end
  keep_owing('limit_work_per_key', of_key('rate', key), number(at_work, 0))
  keep_owing('limit_accept_per_key', of_key('accept', key), number(at_enqueue, 0))
end

local function enter(id)
  local stamp, entry, move = unpack(call('HMGET', arriving_key(id), 'timestamp', '_sq_entry', '_sq_move'))
  local is_known = place_of(id) or call('EXISTS', done_key(id)) == 1
  if is_known and not move then return 'settled' end
  if is_known or not stamp or not move then
    call('DEL', arriving_key(id))
    if not is_known then expire_message(id, now) end
    count('moved_in_messages')
    return is_known and 'known' or 'expired'
  end
  local set, score, slot_ms, pause_ms, at_work, at_enqueue, owner = unpack(words_of(move))
  local letter = letter_of({_sq_entry = entry})
  local named = letter
  if set == 'main' then
    named = join_main(id, letter, score)
  else
    call('ZADD', SETS[set], score, id)
  end
  write_body(id, call('HGETALL', arriving_key(id)), call('PTTL', arriving_key(id)))
  call('HSET', message_key(id), '_sq_entry', named)
  call('DEL', arriving_key(id))
  call('DEL', moved_key(id))  -- it has been here before
  local body = read_body(id)
  take_slot(body, id, number(slot_ms, -2))
  hinder(body, owner, pause_ms, at_work, at_enqueue)
  if set == 'main' then enter_turns(body, id, score) end
  count('moved_in_messages')
  return 'entered'
end

-- A mover that stalled must not discard what the next one has brought: it may be gone from where it was.
local function discard(id, owner)
  local move = call('HGET', arriving_key(id), '_sq_move')
  if move and string.match(move, '(%S+) %S+$') == owner then call('DEL', arriving_key(id)) end
  return 'gone'
end

local answers = {}
for a = 2, #ARGV, 3 do
  answers[#answers + 1] = ARGV[a + 1] == 'enter' and enter(ARGV[a]) or discard(ARGV[a], ARGV[a + 2])
end
return finish(answers)
