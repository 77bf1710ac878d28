-- Hands one delivered entry to a consumer. Returns {id, entry, delivery, body}, or nothing where it may not run; what
-- had to be done about that is done. `room` is false once the batch is full: the entry then goes back, uncharged. A
-- suspect is for one who runs it `alone`, so that the innocents beside it do not die of it for the last time.
local function take(letter, entry, id, consumer, lock_ms, now, room, alone)
  if not id or not call('ZSCORE', MAIN, id) then return drop_strayed(letter, entry, id) end
  local body = read_body(id)
  if not body then
    drop_entry(letter, entry)
    expire_message(id, now)
    return
  end
  if body._sq_entry and body._sq_entry ~= letter .. entry then  -- an older entry of a message that moved on
    drop_entry(letter, entry)
    return
  end
  local suspect = body._sq_suspect
  if not room or (suspect and not alone) then
    call('XCLAIM', STREAMS[letter], GROUP, suspect and SUSPECTS or RETURNED, 0, entry, 'JUSTID')
    return
  end
  local owner = try('GET', lock_key(id))
  if owner and owner ~= consumer then
    if owner ~= body._sq_owner then count('outside_locked') end
    call('XCLAIM', STREAMS[letter], GROUP, PARKED, 0, entry, 'JUSTID')
    return
  end
  if is_claimed_elsewhere(body) then count('outside_claimed_elsewhere') end
  call('SET', lock_key(id), consumer, 'PX', lock_ms)
  local delivery = string.format('%d', number(body._sq_deliveries, 0) + 1)
  call('HSET', message_key(id), 'status', 'processing', '_sq_entry', letter .. entry, '_sq_owner', consumer,
       '_sq_deliveries', delivery)
  if body._sq_ttl then arm_body(id, body._sq_ttl) end
  tell(body._sq_listener, id, 'processing')
  return {id, letter .. entry, delivery, call('HGETALL', message_key(id))}
end

local function size_of(row)
  local bytes = 0
  for _, text in ipairs(row[4]) do bytes = bytes + #text end
  return bytes
end

-- The lease in force, in milliseconds. A queue without one was never joined, or its keys are gone.
local function lease_in_force() return number(call('HGET', META, 'lease_ms')) end
local NOT_JOINED = redis.error_reply('NOTJOINED the queue has no lease: join it first')
