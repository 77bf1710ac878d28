-- enqueue: nothing -> queued, or scheduled where it is due later
-- KEYS     house, then per message: message done slot
-- ARGV     dedup_expiry index_users replicas, then per message: id priority delay at ttl listener deduplicated count, then count
--          fields and values; at is when it is due, by the server's clock, or empty where the delay says it
-- RETURNS  per message: {id, status} with the status of a new message, or {id of the existing one, its status, "duplicate"}
--- include house
--- include place
--- include limits
--- include turns
--- include ending
local dedup_expiry, index = number(ARGV[1], 3600), ARGV[2] == '1'

-- What this call accepts takes its place at the end, all of it at once: id -> status.
local accepted, lined, later = {}, {ids = {}, main = {}, h = {}, l = {}}, {}

local function status_of(id, body, marker)
  if accepted[id] then return accepted[id] end
  if body and place_of(id) then return body.status or 'queued' end
  return marker and string.match(marker, '^%w+') or nil
end

-- The id and status that a new message would double, if any: its own, or the holder of its dedup slot. A slot whose
-- holder has neither body nor place is free for the taking.
local FIELDS = {'timestamp', 'status'}
local function existing(message)
  local status = status_of(message.id, message.body, message.marker)
  if status then return message.id, status end
  local holder = message.slot and try('GET', message.slot)
  if type(holder) ~= 'string' or holder == message.id then return end
  local held = read_body(holder, FIELDS)
  if held or place_of(holder) then return holder, held and held.status or 'queued' end
end

-- XADD or ZADD comes first: at maxmemory it is refused, and then nothing was written. Returns the value of _sq_entry.
local function get_in(message, due)
  if message.delay > 0 then
    call('ZADD', SCHEDULED, due, message.id)
    append(later, message.id)
    return message.letter
  end
  local entry = call('XADD', STREAMS[message.letter], '*', 'id', message.id)
  append(lined.ids, message.id)
  append(lined.main, due, message.id)
  if LINES[message.letter] then append(lined[message.letter], due, message.id) end
  return message.letter .. entry
end

local function take_places()
  if #later > 0 then
    leave_line(unpack(later))
    call('ZREM', RETRY, unpack(later))
    call('ZREM', DLQ, unpack(later))
  end
  if #lined.ids == 0 then return end
  leave_all_sets(unpack(lined.ids))
  call('ZADD', MAIN, unpack(lined.main))
  for letter, line in pairs(LINES) do
    if #lined[letter] > 0 then call('ZADD', line, unpack(lined[letter])) end
  end
end

-- In portions: Lua unpacks no more than 8,000 values at once. What the engine needs comes last, and wins.
local function write_body(message, words)
  local key, n = message_key(message.id), #words
  for a = message.first, message.last do
    n = n + 1
    words[n] = ARGV[a]
    if n == 1000 then
      call('HSET', key, unpack(words))
      words, n = {}, 0
    end
  end
  if message.listener ~= '' then append(words, '_sq_listener', message.listener) end
  if message.ttl ~= '' then append(words, '_sq_ttl', message.ttl) end
  if message.slot then append(words, 'dedup_key', message.slot) end
  if #words > 0 then call('HSET', key, unpack(words)) end
  if message.ttl ~= '' then arm_body(message.id, message.ttl, message.delay) end
end

local function accept(message, now, stamp)
  local due = message.delay > 0 and now + message.delay or next_score(now)
  local status = message.delay > 0 and 'scheduled' or 'queued'
  local entry = get_in(message, due)
  if message.known then call('DEL', message_key(message.id)) end  -- an orphan's fields must not mix with the new ones
  write_body(message, {'timestamp', stamp, 'status', status, 'retry_count', '0', '_sq_entry', entry})
  if message.slot then call('SET', message.slot, message.id, 'EX', whole_seconds(message.delay + dedup_expiry)) end
  if indexes_users then
    local user = call('HGET', message_key(message.id), 'user_id')
    index_user({user_id = user or nil}, message.id, due, message.ttl, message.delay)
  end
  if message.delay == 0 and at_once() then
    local field = agreed('limit_key')
    enter_turns({[field] = call('HGET', message_key(message.id), field) or nil}, message.id, due)
  end
  accepted[message.id] = status
  count('total_messages')
  return {message.id, status}
end

local wrong = wrong_type()
if wrong then return wrong end

-- The caller's WAIT looks at the last write of its connection, and a duplicate that cannot be counted would be none.
if number(ARGV[3], 0) > 0 then call('HSET', META, 'replicas', ARGV[3]) end
indexes_users = index or agreed('user_index') == '1'
local now, answers, k, a, last = server_time(), {}, HOUSE + 1, 4, #ARGV
local stamp, messages, bodies, markers = seconds(now), {}, {}, {}
while a <= last do
  local fields, at, i = number(ARGV[a + 7]), number(ARGV[a + 3]), #messages + 1
  messages[i] = {
    id = ARGV[a], letter = string.sub(ARGV[a + 1], 1, 1), ttl = ARGV[a + 4], listener = ARGV[a + 5],
    delay = at and math.max(0, at - now) or number(ARGV[a + 2], 0), slot = ARGV[a + 6] == '1' and KEYS[k + 2] or nil,
    first = a + 8, last = a + 7 + 2 * fields,
  }
  bodies[i], markers[i] = KEYS[k], KEYS[k + 1]
  a, k = a + 8 + 2 * fields, k + 3
end
markers = call('MGET', unpack(markers))
local some_known = call('EXISTS', unpack(bodies)) > 0  -- nearly always all ids are new
for i, message in ipairs(messages) do
  message.marker = markers[i]
  if some_known then
    message.body = read_body(message.id, FIELDS)
    message.known = message.body ~= nil or call('EXISTS', bodies[i]) == 1
  end
  local holder, status = existing(message)
  if holder then
    count('duplicate_messages')
    answers[i] = {holder, status, 'duplicate'}
  else
    answers[i] = accept(message, now, stamp)
  end
end
take_places()
if index and agreed('user_index') ~= '1' then call('HSET', META, 'user_index', '1') end
return finish(answers)
