-- enter: ids of main without a living entry, or with one out of order -> queued, in main's order; those that have no body
--        are noted for `set_aside`
-- KEYS     house
-- ARGV     begins limit adopted_ttl dedup_expiry; begins is 1 to begin a pass over main, 0 to go on with the one under way:
--          several calls may be under way at once, each takes the next page
-- RETURNS  {whether that was the end (0 or 1), ids looked at, given an entry, put in order, without a body}
--- include house
--- include place
--- include limits
--- include turns
--- include ending
--- include restart
--- include survey
local begins, limit = ARGV[1] == '1', number(ARGV[2], 500)
local adopted_ttl, dedup_expiry = number(ARGV[3], 3600), number(ARGV[4], 3600)

local wrong = wrong_type()
if wrong then return wrong end
local cursor, last = '0', {}
if not begins then
  local stands = call('HGET', META, 'migration_pass') or ''
  cursor, last.h, last.n, last.l = string.match(stands, '^(%S+ %d+)/(%S*)/(%S*)/(%S*)$')
  if not cursor then return {1, 0, 0, 0, 0} end
end
local now, entered, ordered, bodiless = server_time(), 0, 0, 0

local function parsed(entry)
  local ms, seq = string.match(entry or '', '^(%d+)%-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

local function is_in_order(letter, ms, seq)
  local last_ms, last_seq = parsed(last[letter])
  return not last_ms or is_after(ms, seq, {ms = last_ms, seq = last_seq})
end

-- XADD comes first: at maxmemory it is refused, and then nothing of this message was written.
local function give_entry(id, letter, old, ...)
  local entry = call('XADD', STREAMS[letter], '*', 'id', id)
  if old then drop_entry(letter, old) end
  call('HSET', message_key(id), '_sq_entry', letter .. entry, ...)
  last[letter] = entry
end

-- What somebody requeued by hand starts anew.
local function enter(id, body, letter, old, score)
  local ttl = body._sq_ttl or (not body._sq_types and life_of(id, adopted_ttl)) or nil
  if ttl then
    give_entry(id, letter, old, 'status', 'queued', '_sq_ttl', ttl)
  else
    give_entry(id, letter, old, 'status', 'queued')
  end
  if LINES[letter] then call('ZADD', LINES[letter], score, id) end
  if body._sq_owner then call('HDEL', message_key(id), '_sq_owner') end
  if body.status == 'queued' and number(body.retry_count, 0) == 0 then restart(id, body, dedup_expiry) end
  arm_body(id, ttl)
  index_user(body, id, score, ttl)
  entered = entered + 1
end

-- Nearly all of an old queue: a hash that the engine never saw, and that was no dead letter. What `enter` asks of others
-- is known of it: no more of it is read, and it is moved in as fast as can be. Its time to live is the documented one, or
-- what it has left.
local function enter_unknown(id, score)
  local key = message_key(id)
  local seen = try('HMGET', key, 'timestamp', '_sq_entry', 'moved_to_dlq_at', 'user_id')
  if not seen[1] or seen[2] or seen[3] then return false end
  local entry, ttl = call('XADD', STREAMS.n, '*', 'id', id), adopted_ttl
  if not KNOWS_GT or call('EXPIRE', key, ttl, 'GT') == 0 then
    ttl = life_of(id, adopted_ttl)
    arm_body(id, ttl)
  end
  call('HSET', key, '_sq_entry', 'n' .. entry, 'status', 'queued', '_sq_ttl', ttl)
  local index = user_key(seen[4])
  if index and ttl ~= adopted_ttl then
    index_user({user_id = seen[4]}, id, score, ttl)
  elseif index and not failed(try('ZADD', index, score, id)) then
    outlast(index, ttl)
  end
  last.n = entry
  entered = entered + 1
  return true
end

local function look_at(id, score)
  if enter_unknown(id, score) then return end
  local body = read_body(id)
  if not body then
    call('ZADD', BODILESS, 'NX', now, id)
    bodiless = bodiless + 1
    return
  end
  local letter, entry = letter_of(body), live_entry(body)
  local ms, seq = parsed(entry)
  if not entry or not (lives(letter, entry, ms, seq) or is_parked(id, body)) then
    enter(id, body, letter, entry, score)
  elseif not is_delivered(letter, ms, seq) then
    if is_in_order(letter, ms, seq) then
      last[letter] = entry
    else
      give_entry(id, letter, entry)
      ordered = ordered + 1
    end
  end
end

local page = page_of(MAIN, cursor, limit)
for i, id in ipairs(page.ids) do look_at(id, page.scores[i]) end
if bodiless > 0 then call('EXPIRE', BODILESS, 86400) end
local after = cursor_after(page)
if after == '0' then
  call('HDEL', META, 'migration_pass')
else
  call('HSET', META, 'migration_pass', table.concat({after, last.h or '', last.n or '', last.l or ''}, '/'))
end
return {after == '0' and 1 or 0, #page.ids, entered, ordered, bodiless}
