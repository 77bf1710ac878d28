-- Where a message stands: its entry in a stream, its place in the documented sets, its body and what hangs on it.

local ORPHAN_TTL = 3600    -- seconds left to a body that somebody took out of every queue
local DEAD_LETTER_TTL = 30 * 86400  -- the same, where somebody made it a dead letter by hand
local EXPIRED_TTL = 60     -- seconds that a marker without a result stays
local LOST_CAP = 10000     -- how many ids P:lost remembers

-- A body is a hash that has a timestamp; nil for anything less, a key of another type included. Whoever needs fewer
-- fields names them, the timestamp first.
local BODY = {'timestamp', '_sq_entry', '_sq_owner', '_sq_deliveries', '_sq_ttl', '_sq_listener', '_sq_crashes',
              'retry_count', 'status', 'dedup_key', 'user_id', '_sq_settled', '_sq_types', '_sq_suspect'}
-- Where limits are per key, the payload's field that tells keys apart belongs to what is read, and the types of values.
local keyed = {}
local function with_key(names)
  local field = agreed('limit_key')
  if not field then return names end
  if not keyed[names] then
    keyed[names] = {unpack(names)}
    table.insert(keyed[names], field)
    table.insert(keyed[names], '_sq_types')
  end
  return keyed[names]
end
local function read_hash(command, id, ...)
  local values = try(command, message_key(id), ...)
  if values.err and not string.find(values.err, 'WRONGTYPE', 1, true) then
    error(values.err)  -- out of reach (a Cluster slot on its way, a permission that lacks) is not run out
  end
  return not values.err and values or {}
end
local function read_body(id, names)
  names = with_key(names or BODY)
  local values = read_hash('HMGET', id, unpack(names))
  if not values[1] then return nil end
  local body = {}
  for i, name in ipairs(names) do body[name] = values[i] or nil end
  return body
end

-- _sq_entry is a priority's letter, followed by the id of the live entry where there is one.
local function letter_of(body)
  local letter = body and body._sq_entry and string.sub(body._sq_entry, 1, 1)
  return STREAMS[letter] and letter or 'n'
end
-- What Redis would not take for an entry's id, somebody wrote there: in the middle of a script it would be an error. No
-- number of up to 19 digits is too large.
local function live_entry(body)
  local entry = body and string.match(body._sq_entry or '', '^[hnl](%d+%-%d+)$')
  if not entry or #entry <= 20 then return entry end
  local ms, seq = string.match(entry, '^(%d+)%-(%d+)$')
  return #ms <= 19 and #seq <= 19 and entry or nil
end

-- Streams are shared with other programs: whether the entry is still there is asked, never assumed.
local function entry_exists(letter, entry)
  return entry and call('XRANGE', STREAMS[letter], entry, entry, 'COUNT', 1)[1] ~= nil
end

-- Takes entries off a stream. Never deletes a hash.
local function drop_entry(letter, ...)
  call('XACK', STREAMS[letter], GROUP, ...)
  call('XDEL', STREAMS[letter], ...)
end

-- The score of the next message: server time, one microsecond after the newest place in line. Scores that an
-- outsider put more than a minute ahead do not count, or they would drag every later one along.
local last_score
local function next_score(now)
  if not last_score then
    local newest = call('ZREVRANGEBYSCORE', MAIN, now + 60, '-inf', 'WITHSCORES', 'LIMIT', 0, 1)
    last_score = number(newest[2], 0)
  end
  last_score = math.max(now, last_score + 0.000001)
  return last_score
end

-- Which line a message stood in is not asked: its hash, which knew, may be gone.
local function leave_line(...)
  call('ZREM', MAIN, ...)
  call('ZREM', LINES.h, ...)
  call('ZREM', LINES.l, ...)
  call('ZREM', PARKED, ...)
end

local function leave_all_sets(...)
  leave_line(...)
  call('ZREM', RETRY, ...)
  call('ZREM', SCHEDULED, ...)
  call('ZREM', DLQ, ...)
end

-- At the tail of the line, and nowhere else: a stream entry and a place in main. Returns the value of _sq_entry.
-- XADD comes first: at maxmemory it is refused, and then nothing was written.
local function join_line(id, letter, score)
  local entry = call('XADD', STREAMS[letter], '*', 'id', id)
  leave_all_sets(id)
  call('ZADD', MAIN, score, id)
  if LINES[letter] then call('ZADD', LINES[letter], score, id) end
  return letter .. entry
end

local function place_of(id)
  return call('ZSCORE', MAIN, id) or call('ZSCORE', RETRY, id) or call('ZSCORE', SCHEDULED, id) or call('ZSCORE', DLQ, id)
end

local function is_dead_letter(id) return call('ZSCORE', DLQ, id) and not call('ZSCORE', MAIN, id) end

-- A time to live that EXPIRE accepts, whatever a caller or a damaged hash asks for: refused in the middle, it would leave
-- half of a script done.
local CENTURY = 100 * 365 * 86400
local function whole_seconds(duration) return math.max(1, math.min(math.ceil(duration), CENTURY)) end

-- The body's time to live, from now on, plus the seconds until the message is due.
local function arm_body(id, ttl, until_due)
  ttl = number(ttl)
  if ttl then
    call('EXPIRE', message_key(id), whole_seconds(ttl + (until_due or 0)))
  else
    call('PERSIST', message_key(id))
  end
end

-- How long an old producer's message lives: the documented time, or what it has left where that is longer; an empty text
-- where it has no end.
local function life_of(id, documented)
  local left = call('TTL', message_key(id))
  return left == -1 and '' or math.max(left, number(documented))
end

-- What an outsider took out of the line gets an end; it keeps an earlier one, and needs none while it waits elsewhere.
local function bound_orphan(id)
  leave_line(id)
  if call('TTL', message_key(id)) ~= -1 or call('ZSCORE', RETRY, id) or call('ZSCORE', SCHEDULED, id) then return end
  call('EXPIRE', message_key(id), call('ZSCORE', DLQ, id) and DEAD_LETTER_TTL or ORPHAN_TTL)
end
