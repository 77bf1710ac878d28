-- Where a message stands: its entry in a stream, its place in the documented sets, its body and what hangs on it.

local ORPHAN_TTL = 3600    -- seconds left to a body that somebody took out of every queue
local DEAD_LETTER_TTL = 30 * 86400  -- the same, where somebody made it a dead letter by hand
local EXPIRED_TTL = 60     -- seconds that a marker without a result stays
local LOST_CAP = 10000     -- how many ids P:lost remembers

-- A body is a hash that has a timestamp; nil for anything less, a key of another type included. Whoever needs fewer
-- fields names them, the timestamp first.
local BODY = {'timestamp', '_sq_entry', '_sq_owner', '_sq_deliveries', '_sq_ttl', '_sq_listener', '_sq_crashes',
              'retry_count', 'status', 'dedup_key', 'user_id', '_sq_settled', '_sq_types', '_sq_suspect'}
local function read_hash(command, id, ...)
  local values = try(command, message_key(id), ...)
  if values.err and not string.find(values.err, 'WRONGTYPE', 1, true) then
    error(values.err)  -- out of reach (a Cluster slot on its way, a permission that lacks) is not run out
  end
  return not values.err and values or {}
end
local function read_body(id, names)
  names = names or BODY
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

-- Drops an entry whose message is not in line, and never the hash. Where that still names the entry, somebody took the
-- message out; else it has moved on, or ran out, or the entry is another program's.
local function drop_strayed(letter, entry, id)
  drop_entry(letter, entry)
  if not id then return end
  local body = read_body(id)
  if body and body._sq_entry == letter .. entry then
    call('HSET', message_key(id), '_sq_entry', letter)
    call('HDEL', message_key(id), '_sq_owner')
    count('outside_taken_out')
  end
  bound_orphan(id)
end

-- Whether somebody else says that he works on a message which nobody of ours holds: whatever ends our holding it, or
-- puts it into line, writes another status.
local function is_claimed_elsewhere(body) return body.status == 'processing' and not body._sq_owner end

-- A slot belongs to the message whose id it holds, and only a key of this queue's is one.
local function is_slot(key) return key and string.sub(key, 1, #PREFIX + 7) == PREFIX .. ':dedup:' end
local function free_slot(body, id)
  if is_slot(body.dedup_key) and try('GET', body.dedup_key) == id then call('DEL', body.dedup_key) end
end

local KNOWS_GT = redis.REDIS_VERSION_NUM ~= nil  -- EXPIRE's; both came with Redis 7.0

-- The index of a user's unfinished messages, kept where the queue asked for it (P:meta user_index).
local indexes_users
local function user_key(user_id)
  if indexes_users == nil then indexes_users = agreed('user_index') == '1' end
  return indexes_users and user_id and PREFIX .. ':user:' .. redis.sha1hex(user_id)
end
-- As long as the last of them.
local function outlast(key, wanted)
  local longer  -- what has no end lasts longer than anything, but a new key has none either
  if KNOWS_GT then
    longer = call('EXPIRE', key, wanted, 'GT') == 0
  else
    local left = call('TTL', key)
    longer = left == -1 or left > wanted
    if not longer then call('EXPIRE', key, wanted) end
  end
  if longer and call('ZCARD', key) == 1 then call('EXPIRE', key, wanted) end
end
local function index_user(body, id, score, ttl, until_due)
  local key = user_key(body.user_id)
  if not key or failed(try('ZADD', key, score, id)) then return end
  ttl = number(ttl)
  if not ttl then return call('PERSIST', key) end
  outlast(key, whole_seconds(ttl + (until_due or 0)))
end
local function forget_user(body, id)
  local key = user_key(body.user_id)
  if key then try('ZREM', key, id) end
end

-- Messages that end: what they need alike is done for all of them at once, by `end_messages`.
local ending = {entries = {h = {}, n = {}, l = {}}, ids = {}, keys = {}, markers = {}}
local function append(list, first, second)
  list[#list + 1] = first
  if second then list[#list + 1] = second end
end

-- Has a message end for good: out of every set, its body and secrets deleted, a marker left for late listeners.
local function end_message(id, body, status, token, result, ttl)
  local letter, entry = letter_of(body), live_entry(body)
  if entry then append(ending.entries[letter], entry) end
  append(ending.ids, id)
  append(ending.keys, message_key(id), lock_key(id))
  local marker = status .. '\n' .. (token or '') .. '\n' .. (result or '')
  append(ending.markers, {id = id, text = marker, ttl = whole_seconds(ttl or EXPIRED_TTL), body = body})
  tell(body and body._sq_listener, id, status, result)
end

-- XACK comes first: it is allowed at maxmemory, and what follows an allowed write is allowed too.
local function end_messages()
  if #ending.ids == 0 then return end
  for letter, entries in pairs(ending.entries) do
    if #entries > 0 then drop_entry(letter, unpack(entries)) end
  end
  leave_all_sets(unpack(ending.ids))
  call('DEL', unpack(ending.keys))
  for _, marker in ipairs(ending.markers) do
    if marker.body then
      free_slot(marker.body, marker.id)
      forget_user(marker.body, marker.id)
    end
    call('SET', done_key(marker.id), marker.text, 'EX', marker.ttl)
  end
  ending = {entries = {h = {}, n = {}, l = {}}, ids = {}, keys = {}, markers = {}}
end

-- A body that ran out: counted and shown, never handed to a handler.
local function expire_message(id, now)
  if call('EXISTS', message_key(id)) == 1 then count('outside_damaged') end
  leave_all_sets(id)
  bound_orphan(id)
  call('ZREM', BODILESS, id)
  call('DEL', lock_key(id))
  call('ZADD', LOST, now, id)
  call('ZREMRANGEBYRANK', LOST, 0, -LOST_CAP - 1)
  call('SET', done_key(id), 'expired\n\n', 'EX', EXPIRED_TTL)
  count('expired_messages')
end
