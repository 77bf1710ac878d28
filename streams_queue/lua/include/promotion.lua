-- What is due takes its place at the tail of the line.
local function promote_due(now, limit)
  local promoted, more = 0, 0

  local function promote(set, id)
    local body = read_body(id)
    if not body then return expire_message(id, now) end
    call('ZREM', set, id)  -- first: it is allowed at maxmemory, and what follows an allowed write is allowed too
    if call('ZSCORE', MAIN, id) then  -- main wins, and `reconcile` sees to its entry
      count('outside_two_places')
    else
      local score = next_score(now)
      drop_parked(id)
      local entry = join_line(id, letter_of(body), score)
      call('HSET', message_key(id), 'status', 'queued', '_sq_entry', entry)
      if body._sq_ttl or body._sq_types then arm_body(id, body._sq_ttl) end  -- an old producer's hash keeps its own
      index_user(body, id, score, body._sq_ttl)
      enter_turns(body, id, score)
      promoted = promoted + 1
    end
  end

  for _, set in ipairs({RETRY, SCHEDULED}) do
    local due = call('ZRANGEBYSCORE', set, '-inf', now, 'LIMIT', 0, limit)
    for _, id in ipairs(due) do promote(set, id) end
    if #due == limit then more = 1 end
  end
  return more, promoted
end

-- Seconds until something has its time, as a text; empty where nothing waits for one.
local function until_due(now)
  local first = math.huge
  for _, set in ipairs({RETRY, SCHEDULED, WAKE}) do
    first = math.min(first, number(call('ZRANGE', set, 0, 0, 'WITHSCORES')[2], math.huge))
  end
  return first < math.huge and seconds(math.max(0, first - now)) or ''
end
