-- keep: messages that wait for a retry, scheduled ones and dead letters -> the same, their bodies kept for as long as they
--       may be needed; one that stands in a place before this one leaves this one: main, retry, scheduled, dlq
-- KEYS     house
-- ARGV     queue cursor limit adopted_ttl dead_letter_ttl; queue is retry, scheduled or dlq
-- RETURNS  {next cursor, ids looked at, bodies kept, places left, without a body}
--- include house
--- include place
--- include limits
--- include turns
--- include ending
--- include survey
local queue, cursor, limit = ARGV[1], ARGV[2], number(ARGV[3], 500)
local adopted_ttl, dead_letter_ttl = number(ARGV[4]), ARGV[5]
local SET = ({retry = RETRY, scheduled = SCHEDULED, dlq = DLQ})[queue]
local BEFORE = {retry = {MAIN}, scheduled = {MAIN, RETRY}, dlq = {MAIN, RETRY, SCHEDULED}}

local wrong = wrong_type()
if wrong then return wrong end
local now, kept, left, bodiless, gone = server_time(), 0, 0, 0, {}

local function stands_before(id)
  for _, set in ipairs(BEFORE[queue]) do
    if call('ZSCORE', set, id) then return true end
  end
end

-- A dead letter that was buried by the engine has its own time already.
local function keep_dead_letter(id, body)
  local reason = call('HGET', message_key(id), '_sq_reason')
  if reason then return end
  call('HSET', message_key(id), '_sq_reason', 'error', '_sq_entry', letter_of(body))
  arm_body(id, dead_letter_ttl)
  free_slot(body, id)
  kept = kept + 1
end

local function keep_waiting(id, body, due)
  if body._sq_types or body._sq_ttl then return end
  local until_due = math.max(0, number(due, now) - now)
  local life = number(life_of(id, adopted_ttl + until_due))
  local ttl = life and math.max(adopted_ttl, math.floor(life - until_due)) or ''
  call('HSET', message_key(id), '_sq_ttl', ttl, '_sq_entry', letter_of(body))
  arm_body(id, ttl, until_due)
  index_user(body, id, due, ttl, until_due)
  kept = kept + 1
end

local page = page_of(SET, cursor, limit)
for i, id in ipairs(page.ids) do
  local body = read_body(id)
  if stands_before(id) then
    call('ZREM', SET, id)
    gone[id], left = true, left + 1
  elseif not body then
    call('ZADD', BODILESS, 'NX', now, id)
    bodiless = bodiless + 1
  elseif queue == 'dlq' then
    keep_dead_letter(id, body)
  else
    keep_waiting(id, body, page.scores[i])
  end
end
if bodiless > 0 then call('EXPIRE', BODILESS, 86400) end
return {cursor_after(page, gone), #page.ids, kept, left, bodiless}
