-- enqueue: nothing -> queued, or scheduled where it is due later
-- KEYS     house, then per message: message done slot
-- ARGV     dedup_expiry index_users replicas, then per message: id priority delay ttl listener deduplicated count, then count fields
--          and values
-- RETURNS  per message: {id, status} with the status of a new message, or {id of the existing one, its status, "duplicate"}
--- include house
--- include place
local dedup_expiry, index = number(ARGV[1], 3600), ARGV[2] == '1'

local function status_of(id, body)
  if body and place_of(id) then return body.status or 'queued' end
  local marker = try('GET', done_key(id))
  return type(marker) == 'string' and string.match(marker, '^%w+') or nil
end

-- The id and status that a new message would double, if any: its own, or the holder of its dedup slot. A slot whose
-- holder has neither body nor place is free for the taking.
local function existing(id, body, slot)
  local status = status_of(id, body)
  if status then return id, status end
  local holder = slot and try('GET', slot)
  if type(holder) ~= 'string' or holder == id then return end
  local held = read_body(holder)
  if held or place_of(holder) then return holder, held and held.status or 'queued' end
end

local function place(id, letter, delay, score)
  if delay <= 0 then return join_line(id, letter, score), 'queued', score end
  call('ZADD', SCHEDULED, score, id)
  leave_line(id)
  call('ZREM', RETRY, id)
  call('ZREM', DLQ, id)
  return letter, 'scheduled', score
end

local function accept(message, now)
  local due = message.delay > 0 and now + message.delay or next_score(now)
  local old = message.body ~= nil or call('EXISTS', message_key(message.id)) == 1
  local entry, status = place(message.id, message.letter, message.delay, due)
  if old then call('DEL', message_key(message.id)) end  -- an orphan's fields must not mix with the new ones
  call('HSET', message_key(message.id), 'timestamp', seconds(now), 'status', status, 'retry_count', '0', '_sq_entry', entry)
  write_fields(message.id, message.first, message.last)
  if message.listener ~= '' then call('HSET', message_key(message.id), '_sq_listener', message.listener) end
  if message.ttl ~= '' then
    call('HSET', message_key(message.id), '_sq_ttl', message.ttl)
    arm_body(message.id, message.ttl, message.delay)
  end
  if message.slot then
    call('HSET', message_key(message.id), 'dedup_key', message.slot)
    call('SET', message.slot, message.id, 'EX', whole_seconds(message.delay + dedup_expiry))
  end
  if indexes_users then
    local user = call('HGET', message_key(message.id), 'user_id')
    index_user({user_id = user or nil}, message.id, due, message.ttl, message.delay)
  end
  count('total_messages')
  return {message.id, status}
end

local wrong = wrong_type()
if wrong then return wrong end

-- The caller's WAIT looks at the last write of its connection, and a duplicate that cannot be counted would be none.
if number(ARGV[3], 0) > 0 then call('HSET', META, 'replicas', ARGV[3]) end
indexes_users = index or call('HGET', META, 'user_index') == '1'
local now, answers, k, a = server_time(), {}, HOUSE + 1, 4
local messages = {}
while a <= #ARGV do
  local fields = number(ARGV[a + 6])
  messages[#messages + 1] = {
    id = ARGV[a], letter = string.sub(ARGV[a + 1], 1, 1), delay = number(ARGV[a + 2], 0), ttl = ARGV[a + 3],
    listener = ARGV[a + 4], slot = ARGV[a + 5] == '1' and KEYS[k + 2] or nil, first = a + 7, last = a + 6 + 2 * fields,
  }
  a, k = a + 7 + 2 * fields, k + 3
end
for i, message in ipairs(messages) do
  message.body = read_body(message.id)
  local holder, status = existing(message.id, message.body, message.slot)
  if holder then
    count('duplicate_messages')
    answers[i] = {holder, status, 'duplicate'}
  else
    answers[i] = accept(message, now)
  end
end
if index and call('HGET', META, 'user_index') ~= '1' then call('HSET', META, 'user_index', '1') end
return finish(answers)
