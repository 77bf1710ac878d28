-- examine: reads all that is known of messages; writes nothing
-- KEYS     house, then per message: message lock done
-- ARGV     per message: id
-- RETURNS  per message: {server time, fields of the hash, its TTL, lock, its TTL, marker, its TTL, scores in main, parked,
--          retry, scheduled, dlq and lost, of a parked one until when its key is paused, and when its rate has room}; "" for
--          a key of another type and where there is none, TTLs as Redis tells them
--- include house
--- include limits
--- include turns
local function text_at(key)
  local text = try('GET', key)
  return type(text) == 'string' and text or ''
end

local function fields_at(key)
  local fields = try('HGETALL', key)
  if failed(fields) and not string.find(fields.err, 'WRONGTYPE', 1, true) then error(fields.err) end  -- as in read
  return failed(fields) and {} or fields
end

local function held_up(fields, now)
  local body = {}
  for i = 1, #fields, 2 do body[fields[i]] = fields[i + 1] end
  local key = key_of(body)
  return key and held_until(key, now) or {'', ''}
end

local function examine(id)
  local scores = {}
  for i, set in ipairs({MAIN, PARKED, RETRY, SCHEDULED, DLQ, LOST}) do scores[i] = call('ZSCORE', set, id) or '' end
  local body, lock, done = message_key(id), lock_key(id), done_key(id)
  local now, fields = server_time(), fields_at(body)
  return {
    seconds(now), fields, call('TTL', body), text_at(lock), call('TTL', lock), text_at(done), call('TTL', done), scores,
    scores[2] ~= '' and held_up(fields, now) or {'', ''},
  }
end

local answers = {}
for i, id in ipairs(ARGV) do answers[i] = examine(id) end
return answers
