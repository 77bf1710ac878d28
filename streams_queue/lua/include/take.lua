-- Which of these entries, as XREADGROUP gives them, belong to ids in main.
local function in_line(entries)
  local ids, places = {}, {}
  for _, entry in ipairs(entries) do ids[#ids + 1] = entry[2] and entry[2][2] end
  if #ids == 0 then return places end
  for i, score in ipairs(call('ZMSCORE', MAIN, unpack(ids))) do places[ids[i]] = score end
  return places
end

-- A whole hash as a flat list; the fields of BODY, or nil where it is no body; where their values stand in the list; and
-- the bytes of all of it. A field costs time, too, however short it is: it counts as at least so many bytes.
local FIELD = 64
local wanted
local function read_message(id)
  if not wanted then
    wanted = {}
    for _, name in ipairs(with_key(BODY)) do wanted[name] = true end
  end
  local flat, body, at, bytes = read_hash('HGETALL', id), {}, {}, 0
  for i = 1, #flat, 2 do
    local name, value = flat[i], flat[i + 1]
    bytes = bytes + math.max(FIELD, #name + #value)
    if wanted[name] then body[name], at[name] = value, i + 1 end
  end
  return flat, body.timestamp and body, at, bytes
end

local function replace(flat, at, name, value)
  if at[name] then flat[at[name]] = value else append(flat, name, value) end
end

-- Whether a message of this key may begin now; parked where it may not.
local function has_turn(key, body, letter, entry, id, now)
  local left, next_at = may_begin(key, now)
  if left > 0 and left < math.huge then  -- nobody overtakes those that wait for the rate of their key
    local first = first_parked(key)
    local place = first and number(place_in_key(key, first), math.huge)
    if place and place < tonumber(place_in_key(key, id)) then left, next_at = 0, now end
  end
  if left < 1 then
    park(letter, entry, id, key, next_at)
  elseif not is_turn(key, body, id) then
    park(letter, entry, id, key)
  else
    return true
  end
end

-- The rate of the queue: how many may begin now, and in how many milliseconds one more.
local RATE = PREFIX .. ':rate'
local function queue_allows(now)
  local rate = rate_of(agreed('limit_work'))
  if not rate then return math.huge, 0 end
  local left, wait = allowance(RATE, rate, now)
  return left, math.ceil(wait * 1000)
end
local function spend_of_queue(begun, now)
  local rate = begun > 0 and rate_of(agreed('limit_work'))
  if rate then spend(RATE, rate, now, begun) end
end

-- Hands one delivered entry to a consumer. Returns {id, entry, delivery, body} and the body's bytes, or nothing where it
-- may not run; what had to be done about that is done. `places` knows who is in line. `room` is false once the batch is
-- full: the entry then goes back, uncharged. A suspect is for one who runs it `alone`, so that the innocents beside it do
-- not die of it for the last time. What the consumer holds already stays with it as it is, unless it is `unknown` to it.
local function take(letter, entry, id, places, consumer, lock_ms, now, room, alone, unknown)
  if not id or not places[id] then return drop_strayed(letter, entry, id) end
  local flat, body, at, bytes
  if room then
    flat, body, at, bytes = read_message(id)
  else
    body = read_body(id)  -- not all of it, which may be large
  end
  if not body then
    drop_entry(letter, entry)
    expire_message(id, now)
    places[id] = nil
    return
  end
  if body._sq_entry and body._sq_entry ~= letter .. entry then  -- an older entry of a message that moved on
    drop_entry(letter, entry)
    return
  end
  local suspect, held = body._sq_suspect, body._sq_owner == consumer and try('GET', lock_key(id)) == consumer
  if held and not unknown then return end  -- its group was made anew, and delivers from the beginning: a handler runs
  if not room or (suspect and not alone) then
    -- Claimed before, by a call whose answer was lost: nobody works on it, and its lock would hold it up.
    if held then return hand_back(id, body, letter, entry) end
    call('XCLAIM', STREAMS[letter], GROUP, suspect and SUSPECTS or RETURNED, 0, entry, 'JUSTID')
    return
  end
  local key = body._sq_owner ~= consumer and key_of(body)  -- what this consumer holds already has had its turn
  if key and not has_turn(key, body, letter, entry, id, now) then return end
  if not call('SET', lock_key(id), consumer, 'NX', 'PX', lock_ms) then
    local owner = try('GET', lock_key(id))
    if owner ~= consumer then
      if owner ~= body._sq_owner then count('outside_locked') end
      call('XCLAIM', STREAMS[letter], GROUP, LOCKED, 0, entry, 'JUSTID')
      return
    end
    call('SET', lock_key(id), consumer, 'PX', lock_ms)
  end
  if key then
    begin_turn(key, id)
    spend_rate(key, now)
  end
  if is_claimed_elsewhere(body) then count('outside_claimed_elsewhere') end
  local delivery = string.format('%d', number(body._sq_deliveries, 0) + 1)
  local named = letter .. entry
  call('HSET', message_key(id), 'status', 'processing', '_sq_entry', named, '_sq_owner', consumer, '_sq_deliveries', delivery)
  replace(flat, at, 'status', 'processing')
  replace(flat, at, '_sq_entry', named)
  replace(flat, at, '_sq_owner', consumer)
  replace(flat, at, '_sq_deliveries', delivery)
  if body._sq_ttl then arm_body(id, body._sq_ttl) end
  tell(body._sq_listener, id, 'processing')
  return {id, named, delivery, flat}, bytes
end

-- The lease in force, in milliseconds. A queue without one was never joined, or its keys are gone.
local function lease_in_force() return number(agreed('lease_ms')) end
local NOT_JOINED = redis.error_reply('NOTJOINED the queue has no lease: join it first')
