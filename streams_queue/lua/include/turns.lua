-- Whose turn it is among the messages of one key, where `limit_key` names the payload's field that tells keys apart.
--
-- P:key:{h} has those of one key that stand in main, by arrival, where so many of them may run at once: whose rank is lower
-- has his turn. Who has begun stands before all others: an old producer's clock, or a person, may well put a score before
-- its own into main. One that a claim meets before it is parked: its entry stays in the stream, on nobody's list of pending
-- entries, and nothing looks at it until somebody of its key leaves, or the time has come for which P:wake has the key.

local KEY_TTL = 7 * 86400  -- seconds that the index of a key lasts unless somebody comes; who is missing is entered again

-- Whether the value is Python's None, which is written as the text would be.
local function is_none(body, field)
  if body[field] ~= 'None' or not body._sq_types then return false end
  local known, types = pcall(cjson.decode, body._sq_types)
  return known and type(types) == 'table' and types[field] == 'n'
end

-- The hash that stands for the message's key in the names of keys; nil where it has none, or none is asked for.
local function key_of(body)
  local field = agreed('limit_key')
  local value = field and body and body[field]
  if not value or value == '' or is_none(body, field) then return nil end
  return redis.sha1hex(field .. '=' .. value)
end
local function of_key(kind, key) return PREFIX .. ':' .. kind .. ':' .. key end

local MOST_AT_ONCE = 1000
local function at_once() return agreed('limit_key') and whole_limit('limit_concurrency_per_key', MOST_AT_ONCE) end

local function enter_turns(body, id, score)
  local key = at_once() and key_of(body)
  if not key or failed(try('ZADD', of_key('key', key), score, id)) then return end
  call('EXPIRE', of_key('key', key), KEY_TTL)
end

local BEGUN = '-inf'
local function begin_turn(key, id)
  if at_once() then try('ZADD', of_key('key', key), 'XX', BEGUN, id) end
end

-- Handed back, it waits before all that never began, and behind those at work: more may be so than run at once by now.
local HEAD_START = 1e10  -- seconds
local function wait_again(key, id)
  local score = at_once() and call('ZSCORE', MAIN, id)
  if score then try('ZADD', of_key('key', key), 'XX', score - HEAD_START, id) end
end

-- Where a message stands among those of its key, as a score: in the order of turns, where there are any.
local function place_in_key(key, id)
  local place = at_once() and try('ZSCORE', of_key('key', key), id)
  return place and not failed(place) and place or call('ZSCORE', MAIN, id)
end

-- Who left main without a word holds up nobody. All are looked at once in a call: there may be a thousand of them.
local looked_through = {}
local function strike_out_gone(turns, first)
  if looked_through[turns] then return 0 end
  local ids, gone = call('ZRANGE', turns, 0, first - 1), 0
  for i, score in ipairs(call('ZMSCORE', MAIN, unpack(ids))) do
    if not score then gone = gone + call('ZREM', turns, ids[i]) end
  end
  looked_through[turns] = gone == 0
  return gone
end

local function is_turn(key, body, id)
  local limit, turns = at_once(), of_key('key', key)
  if not limit then return true end
  local rank = try('ZRANK', turns, id)
  if failed(rank) then return true end  -- somebody made it a text
  if not rank then
    enter_turns(body, id, call('ZSCORE', MAIN, id))
    rank = call('ZRANK', turns, id)
  end
  while rank >= limit and strike_out_gone(turns, limit) > 0 do rank = call('ZRANK', turns, id) end
  return rank < limit
end

-- How many of this key may begin now, as far as time goes, and the epoch seconds at which one more may: it may be paused,
-- or its rate spent.
local function may_begin(key, now)
  local paused = call('PTTL', of_key('pause', key))
  if paused > 0 then return 0, now + paused / 1000 end
  local rate = rate_of(agreed('limit_work_per_key'))
  if not rate then return math.huge, now end
  local left, wait = allowance(of_key('rate', key), rate, now)
  return left, now + wait
end

-- What holds up all messages of a key: its pause, or its rate, and until when; '' for neither.
local function held_until(key, now)
  local paused, wake = call('PTTL', of_key('pause', key)), number(call('ZSCORE', WAKE, key) or nil, 0)
  return {paused > 0 and seconds(now + paused / 1000) or '', wake > now and seconds(wake) or ''}
end

local function spend_rate(key, now)
  local rate = rate_of(agreed('limit_work_per_key'))
  if rate then spend(of_key('rate', key), rate, now, 1) end
end

local function first_parked(key)
  local first = try('ZRANGE', of_key('parked', key), 0, 0)
  return not failed(first) and first[1] or nil
end

-- Whether the message is on the list of its key now: somebody may have made that a text.
local function list_parked(key, id)
  local parked = of_key('parked', key)
  if failed(try('ZADD', parked, place_in_key(key, id), id)) then return false end
  call('EXPIRE', parked, KEY_TTL)
  return true
end

local function wake_at(key, time) call('ZADD', WAKE, 'LT', seconds(time), key) end

-- P:parked has the time at which the message came into line, in milliseconds, as its entry says it. XACK comes first: it
-- is allowed at maxmemory, and what follows an allowed write is allowed too.
local function park(letter, entry, id, key, wake)
  call('XACK', STREAMS[letter], GROUP, entry)
  call('ZADD', PARKED, string.match(entry, '^%d+'), id)
  list_parked(key, id)
  call('HSET', message_key(id), '_sq_entry', letter .. entry)
  if wake then wake_at(key, wake) end
end

local function is_parked(id, body)
  return call('ZSCORE', PARKED, id) and entry_exists(letter_of(body), live_entry(body))
end

-- The entry of a parked message whose body is gone, and knew it, or that is put into line anew: nobody else will ever
-- meet it.
local function drop_parked(id)
  local came = call('ZSCORE', PARKED, id)
  if not came then return end
  for _, stream in pairs(STREAMS) do
    for _, entry in ipairs(call('XRANGE', stream, came, came)) do
      if entry[2][2] == id then call('XDEL', stream, entry[1]) end
    end
  end
  call('ZREM', PARKED, id)
end

-- The same of one that somebody took out of main.
local function drop_taken_from(id)
  local body = read_body(id)
  if body and is_parked(id, body) then
    call('HSET', message_key(id), '_sq_entry', letter_of(body))
    count('outside_taken_out')
  end
  drop_parked(id)
  bound_orphan(id)
end

-- Whether entries wait that nobody was given so far. Then no worker sleeps in a blocking read: what is unparked belongs
-- before them. Otherwise a new entry wakes one.
local backlog = {}
local function has_backlog(letter)
  if backlog[letter] == nil then
    local last
    for _, group in ipairs(info_about('GROUPS', STREAMS[letter])) do
      if group.name == GROUP then last = group['last-delivered-id'] end
    end
    backlog[letter] = last ~= nil and call('XRANGE', STREAMS[letter], '(' .. last, '+', 'COUNT', 1)[1] ~= nil
  end
  return backlog[letter]
end

-- One whose entry is gone has no need: `reconcile` gives it a new one.
local unparked = {}  -- by this call
local function unpark(id, body, key)
  unparked[id] = true
  if key then try('ZREM', of_key('parked', key), id) end
  local letter, entry = letter_of(body), live_entry(body)
  if call('ZREM', PARKED, id) == 0 or body._sq_owner or not entry_exists(letter, entry) then return end
  if has_backlog(letter) then
    call('XCLAIM', STREAMS[letter], GROUP, RETURNED, 0, entry, 'FORCE', 'JUSTID')
  else
    call('XDEL', STREAMS[letter], entry)
    call('HSET', message_key(id), '_sq_entry', letter .. call('XADD', STREAMS[letter], '*', 'id', id))
  end
end

-- Unparks who has his turn now, in order. A claim looks again, and what does not fit the rate is parked once more. One call
-- meets so many at most, and one of each key; the rest it leaves to the next `promote`. Answers whether one is left that has
-- to wait. Who is gone takes nobody's turn.
local MOST_MET = 500
local woken, met, met_in_all = {}, {}, 0
local function wake_parked(key, now)
  local left, next_at = may_begin(key, now)
  woken[key] = woken[key] or 0
  while woken[key] < left and (not met[key] or met_in_all < MOST_MET) do
    local id = first_parked(key)
    if not id then return false end
    local body = read_body(id)
    local stands = call('ZSCORE', MAIN, id)
    if not body or not stands then
      if stands then drop_parked(id) else drop_taken_from(id) end
      try('ZREM', of_key('parked', key), id)
    elseif key_of(body) ~= key or is_turn(key, body, id) then  -- another field tells keys apart by now: a claim sees
      if call('ZSCORE', PARKED, id) then woken[key] = woken[key] + 1 end  -- else only this list has it still
      unpark(id, body, key)
    else
      return true
    end
    met[key], met_in_all = true, met_in_all + 1
  end
  if not first_parked(key) then return false end
  wake_at(key, woken[key] < left and now or next_at)
  return true
end

-- Whoever looks through all messages unparks what nothing else would: as after limits were changed (it may have another
-- key now), or P:wake or the list of its key deleted, which also ends after a week in which nobody came.
local must_wait = {}
local function look_at_parked(id, body, now)
  if not call('ZSCORE', MAIN, id) then return drop_taken_from(id) end
  local key = key_of(body)
  if not key or not list_parked(key, id) then return unpark(id, body) end
  must_wait[key] = must_wait[key] or wake_parked(key, now)
end

-- A message is in line no more: the next of its key has its turn.
local function leave_turns(body, id, now)
  local key = key_of(body)
  if not key then return end
  try('ZREM', of_key('key', key), id)
  try('ZREM', of_key('parked', key), id)
  if first_parked(key) then wake_parked(key, now or server_time()) end
end

-- A message has been given another key: from now on it stands with those.
local function change_key(id, before)
  local body = read_body(id)
  if key_of(body) == key_of(before) then return end
  leave_turns(before, id)
  local score = call('ZSCORE', MAIN, id)
  if score then enter_turns(body, id, body._sq_owner and BEGUN or score) end
  if score and is_parked(id, body) then look_at_parked(id, body, server_time()) end
end

-- Keys whose time has come.
local function wake_due(now, limit)
  local due = call('ZRANGEBYSCORE', WAKE, '-inf', now, 'LIMIT', 0, limit)
  for _, key in ipairs(due) do
    call('ZREM', WAKE, key)
    wake_parked(key, now)
  end
  return #due == limit or met_in_all >= MOST_MET
end
