-- enqueue: nothing -> queued, or scheduled where it is due later; or nothing, where a limit of the queue refuses it
-- KEYS     house, then per message: message done slot
-- ARGV     dedup_expiry index_users replicas in_order anew shards_version, then per message: id priority delay at ttl
--          listener deduplicated count, then count fields and values; where anew is 1, an id whose message has ended is
--          as good as new; at is when it is due, by the server's clock, or empty where the delay says it
-- RETURNS  per message: {id, status} with the status of a new message, or {id of the existing one, its status,
--          "duplicate"}, or {"", the limit's name, its value, seconds to wait or ""}; where in_order is 1, up to the
--          first of those;
--          an error for all where the caller goes by an older number of shards than this one
--- include house
--- include place
--- include limits
--- include turns
--- include ending
local dedup_expiry, index, in_order, anew = number(ARGV[1], 3600), ARGV[2] == '1', ARGV[4] == '1', ARGV[5] == '1'

-- What this call accepts takes its place at the end, all of it at once: id -> status.
local accepted, lined, later = {}, {ids = {}, main = {}, h = {}, l = {}}, {}

local function status_of(id, body, marker)
  if accepted[id] then return accepted[id] end
  if body and place_of(id) then return body.status or 'queued' end
  return marker and string.match(marker, '^%w+') or nil
end

local function has_ended(message)
  return not accepted[message.id] and (not message.body or is_dead_letter(message.id))
end

-- The id and status that a new message would double, if any: its own, or the holder of its dedup slot. A slot whose
-- holder has neither body nor place is free for the taking.
local FIELDS = {'timestamp', 'status'}
local function existing(message)
  local status = status_of(message.id, message.body, message.marker)
  if status and not (anew and has_ended(message)) then return message.id, status end
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

-- What tells of a new message's key.
local function keyed_values(message)
  local field, values = agreed('limit_key'), {}
  for a = message.first, message.last, 2 do
    if ARGV[a] == field or ARGV[a] == '_sq_types' then values[ARGV[a]] = ARGV[a + 1] end
  end
  return values
end

local some_parked
local function accept(message, now, stamp)
  local due = message.delay > 0 and now + message.delay or next_score(now)
  local status = message.delay > 0 and 'scheduled' or 'queued'
  if some_parked then drop_parked(message.id) end
  local entry = get_in(message, due)
  if message.marker then call('DEL', done_key(message.id)) end
  if message.known then
    if message.body and is_dead_letter(message.id) then count('removed_messages') end
    call('DEL', message_key(message.id))  -- an orphan's fields must not mix with the new ones
  end
  write_body(message, {'timestamp', stamp, 'status', status, 'retry_count', '0', '_sq_entry', entry})
  if message.slot then call('SET', message.slot, message.id, 'EX', whole_seconds(message.delay + dedup_expiry)) end
  if indexes_users then
    local user = call('HGET', message_key(message.id), 'user_id')
    index_user({user_id = user or nil}, message.id, due, message.ttl, message.delay)
  end
  if message.delay == 0 and at_once() then
    enter_turns(keyed_values(message), message.id, due)
  end
  accepted[message.id] = status
  count('total_messages')
  return {message.id, status}
end

-- What the queue declines: more unfinished messages than there is room for, and what finds a bucket of it empty. What
-- one limit refuses costs nothing of the others, and a duplicate never comes here.
local MOST_MESSAGES = 1000000000
local room, buckets, bucket_keys = math.huge, {}, {}

local function draw_from(message, limit, rate, key)
  if not buckets[key] then
    buckets[key] = {limit = limit, rate = rate}
    append(bucket_keys, key)
  end
  append(message.buckets, buckets[key])
end

-- All buckets are read before the first write: where one is out of reach (a Cluster slot on its way), none is written.
local function read_limits(messages, now)
  local most = whole_limit('limit_max_length', MOST_MESSAGES)
  if most then room = most - call('ZCARD', MAIN) - call('ZCARD', RETRY) - call('ZCARD', SCHEDULED) end
  local rate, key_rate = rate_of(agreed('limit_accept')), agreed('limit_key') and rate_of(agreed('limit_accept_per_key'))
  if not rate and not key_rate then return end
  for _, message in ipairs(messages) do
    local key = key_rate and key_of(keyed_values(message))
    message.buckets = {}
    if rate then draw_from(message, 'accept', rate, ACCEPTS) end
    if key then draw_from(message, 'accept_per_key', key_rate, of_key('accept', key)) end
  end
  if #bucket_keys == 0 then return end
  for i, full_at in ipairs(call('MGET', unpack(bucket_keys))) do
    local bucket = buckets[bucket_keys[i]]
    bucket.owed = owed_of(bucket.rate, full_at, now)
  end
end

-- What to answer a message that is refused, by the limit that has to be waited for the longest; or nothing.
local function refusal_of(message)
  if room < 1 then
    count('refused_max_length')
    return {'', 'max_length', agreed('limit_max_length'), ''}
  end
  local slowest, longest = nil, 0
  for _, bucket in ipairs(message.buckets or {}) do
    local left, wait = room_in(bucket.rate, bucket.owed)
    if left < 1 and wait > longest then slowest, longest = bucket, wait end
  end
  if not slowest then return end
  count('refused_' .. slowest.limit)
  return {'', slowest.limit, slowest.rate.text, seconds(longest)}
end

local function charge(message)
  room = room - 1
  for _, bucket in ipairs(message.buckets or {}) do
    bucket.owed = bucket.owed + bucket.rate.interval
    bucket.is_charged = true
  end
end

local function keep_buckets(now)
  for _, key in ipairs(bucket_keys) do
    if buckets[key].is_charged then keep_owed(key, buckets[key].owed, now) end
  end
end

local wrong = wrong_type() or outdated(ARGV[6])
if wrong then return wrong end

-- The caller's WAIT looks at the last write of its connection, and a duplicate that cannot be counted would be none.
if number(ARGV[3], 0) > 0 then call('HSET', META, 'replicas', ARGV[3]) end
indexes_users = index or agreed('user_index') == '1'
local now, answers, k, a, last = server_time(), {}, HOUSE + 1, 7, #ARGV
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
some_parked = call('EXISTS', PARKED) == 1
local limited = agreed('limit_max_length') or agreed('limit_accept') or agreed('limit_accept_per_key')
if limited then read_limits(messages, now) end
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
    local refusal = limited and refusal_of(message)
    answers[i] = refusal or accept(message, now, stamp)
    if refusal and in_order then break end
    if limited and not refusal then charge(message) end
  end
end
take_places()
keep_buckets(now)
if index and agreed('user_index') ~= '1' then call('HSET', META, 'user_index', '1') end
return finish(answers)
