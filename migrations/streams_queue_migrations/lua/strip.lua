-- strip: messages of the engine -> messages as the old queue knew them: fields of the engine gone, what was being worked on
--        queued, what was scheduled waiting as a retry does
-- KEYS     house
-- ARGV     queue cursor limit; queue is main, retry, scheduled or dlq
-- RETURNS  {next cursor, ids looked at, of high or low priority, scheduled ones moved, with payload keys the old code does
--          not know, with values whose types are lost}
--- include house
--- include place
--- include limits
--- include turns
--- include ending
--- include survey
local queue, cursor, limit = ARGV[1], ARGV[2], number(ARGV[3], 500)
local SETS = {main = MAIN, retry = RETRY, scheduled = SCHEDULED, dlq = DLQ}
local STATUS = {main = 'queued', retry = 'retry', scheduled = 'retry', dlq = 'error'}

local wrong = wrong_type()
if wrong then return wrong end
local prioritised, moved, escaped, typed, gone = 0, 0, 0, 0, {}

local function own_fields(id)
  local own, has_escaped = {}, false
  for _, name in ipairs(call('HKEYS', message_key(id))) do
    if string.sub(name, 1, 4) == '_sq_' then own[#own + 1] = name end
    if string.sub(name, 1, 5) == 'data:' then has_escaped = true end
  end
  return own, has_escaped
end

local function strip(id, score)
  local body = read_body(id)
  if queue == 'scheduled' then
    call('ZADD', RETRY, 'NX', score, id)
    call('ZREM', SCHEDULED, id)
    gone[id], moved = true, moved + 1
  end
  if not body then return end
  if body._sq_owner and try('GET', lock_key(id)) == body._sq_owner then call('DEL', lock_key(id)) end
  if letter_of(body) ~= 'n' then prioritised = prioritised + 1 end
  local own, has_escaped = own_fields(id)
  if has_escaped then escaped = escaped + 1 end
  if body._sq_types then typed = typed + 1 end
  call('HSET', message_key(id), 'status', STATUS[queue])
  if queue == 'scheduled' then call('HSET', message_key(id), 'next_retry', score) end
  for from = 1, #own, 1000 do call('HDEL', message_key(id), unpack(own, from, math.min(from + 999, #own))) end
end

local page = page_of(SETS[queue], cursor, limit)
for i, id in ipairs(page.ids) do strip(id, page.scores[i]) end
return {cursor_after(page, gone), #page.ids, prioritised, moved, escaped, typed}
