-- upkeep: a sign of the consumer's life, and whose turn it is to look after the queue; where it is the consumer's, what
--         `promote` does and what `reconcile` does with the newest scores.
-- KEYS     house, then: maintainer
-- ARGV     consumer turn_ms limit adopted_ttl dedup_expiry
-- RETURNS  {turn as `lock` answers it, messages wait that no blocking read brings (0 or 1), messages are pending (0 or 1),
--          more is due (0 or 1), messages promoted, messages given an entry, ids in main less entries in streams,
--          seconds until something is due ("" where nothing waits for a time)}
--- include house
--- include place
--- include limits
--- include turns
--- include ending
--- include restart
--- include survey
--- include mending
--- include promotion
--- include lock
-- After the limits were changed: whose turn it is by the new ones.
local function look_at_all_parked(now, limit)
  local cursor = agreed('parked_cursor')
  if not cursor then return false end
  local page, gone = page_of(PARKED, cursor, limit), {}
  for _, id in ipairs(page.ids) do
    local body = read_body(id)
    if body and is_parked(id, body) then look_at_parked(id, body, now) end
  end
  for _, id in ipairs(page.ids) do gone[id] = not call('ZSCORE', PARKED, id) end
  local after = cursor_after(page, gone)
  if after == '0' then call('HDEL', META, 'parked_cursor') else call('HSET', META, 'parked_cursor', after) end
  return after ~= '0'
end

local consumer, limit = ARGV[1], number(ARGV[3], 500)

local wrong = wrong_type()
if wrong then return wrong end
local turn = take_lock(KEYS[HOUSE + 1], consumer, ARGV[2], true)
if failed(turn) then return turn end

-- Before Redis 7.2 a blocking read that brings nothing leaves its consumer's idle time as it was: an idle worker would
-- seem dead. Its own entries after the last possible one, of which there are none, count no delivery.
try('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', 1, 'STREAMS', STREAMS.n, '18446744073709551615-0')

-- What was handed back, and what must run alone: a blocking read waits for what is new.
local pending, waiting = 0, 0
for _, letter in ipairs(PRIORITIES) do
  local summary = try('XPENDING', STREAMS[letter], GROUP)
  for _, holder in ipairs(not failed(summary) and summary[4] or {}) do
    pending = 1
    if holder[1] == RETURNED or holder[1] == SUSPECTS then waiting = 1 end
  end
end
if turn == 0 then return {turn, waiting, pending, 0, 0, 0, 0, ''} end

local now = server_time()
begin_mending(now, ARGV[4], ARGV[5])
local more, promoted = promote_due(now, limit)
if wake_due(now, limit) then more = 1 end
if look_at_all_parked(now, limit) then more = 1 end
mend_newest(now, limit)
return finish({turn, waiting, pending, more, promoted, repaired, difference(), until_due(now)})
