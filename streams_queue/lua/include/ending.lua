-- How messages leave: who strayed, whose body ran out, who is done. The index of users and the dedup slots follow.

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
  if body then leave_turns(body, id) end
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
  if not body then drop_parked(id) end
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
      leave_turns(marker.body, marker.id)
    end
    call('SET', done_key(marker.id), marker.text, 'EX', marker.ttl)
  end
  ending = {entries = {h = {}, n = {}, l = {}}, ids = {}, keys = {}, markers = {}}
end

-- A body that ran out: counted and shown, never handed to a handler.
local function expire_message(id, now)
  if call('EXISTS', message_key(id)) == 1 then count('outside_damaged') end
  drop_parked(id)
  leave_all_sets(id)
  bound_orphan(id)
  call('ZREM', BODILESS, id)
  call('DEL', lock_key(id))
  call('ZADD', LOST, now, id)
  call('ZREMRANGEBYRANK', LOST, 0, -LOST_CAP - 1)
  call('SET', done_key(id), 'expired\n\n', 'EX', EXPIRED_TTL)
  count('expired_messages')
end
