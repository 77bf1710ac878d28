-- watch: reads how messages stand, and has their next transitions told on a channel
-- KEYS     house, then per message: message done
-- ARGV     channel, then per message: id
-- RETURNS  per message: {status, result or error}, or an empty list where nothing is known of it
--- include house
--- include place
--- include limits
--- include turns
--- include ending
local channel = ARGV[1]

-- The status of a message that is not finished. The field is believed only as far as it can be true: callers may write it.
local function status_in_line(id, body)
  if body._sq_owner then return 'processing' end
  if call('ZSCORE', RETRY, id) then return 'retry' end
  if call('ZSCORE', SCHEDULED, id) then return 'scheduled' end
  return 'queued'
end

local function watch(id)
  local body = read_body(id)
  if body and is_dead_letter(id) then
    return {'error', call('HGET', message_key(id), 'error') or ''}
  end
  if not body and place_of(id) then return {'expired', ''} end
  if body and place_of(id) then
    local listeners = body._sq_listener or ''
    if not string.find(' ' .. listeners .. ' ', ' ' .. channel .. ' ', 1, true) then
      -- Refused at maxmemory: who listens looks again now and then.
      try('HSET', message_key(id), '_sq_listener', listeners == '' and channel or listeners .. ' ' .. channel)
    end
    return {status_in_line(id, body), ''}
  end
  if call('EXISTS', arriving_key(id)) == 1 then return {'queued', ''} end
  local marker = try('GET', done_key(id))
  if type(marker) ~= 'string' then return {} end
  local status, result = string.match(marker, '^(%w+)\n[^\n]*\n(.*)$')
  return status and {status, result} or {}
end

local answers = {}
for a = 2, #ARGV do answers[#answers + 1] = watch(ARGV[a]) end
return answers
