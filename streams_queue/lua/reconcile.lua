-- reconcile: what outsiders did to main -> consistent. An empty cursor looks at the newest scores from 60 s ago to 60 s
--            ahead; any other is a step of a full pass, which begins and ends at "0" and follows the order of main, so
--            that streams that are gone are rebuilt in that order.
-- KEYS     house
-- ARGV     cursor limit adopted_ttl dedup_expiry
-- RETURNS  {next cursor, messages given an entry, messages without a body taken out, ids in main less entries in streams}
--- include house
--- include place
--- include limits
--- include turns
--- include ending
--- include restart
--- include survey
--- include mending
local cursor, limit = ARGV[1], number(ARGV[2], 500)

local wrong = wrong_type()
if wrong then return wrong end
local now, next_cursor = server_time(), ''
begin_mending(now, ARGV[3], ARGV[4])

-- Who was taken out of main by hand, entry and all, is still in a line of priorities, or parked.
local function leave_lines()
  for _, line in pairs(LINES) do
    for _, id in ipairs(call('ZRANGE', line, 0, limit - 1)) do
      if not call('ZSCORE', MAIN, id) then call('ZREM', line, id) end
    end
  end
  for _, id in ipairs(call('ZRANGE', PARKED, 0, limit - 1)) do
    if not call('ZSCORE', MAIN, id) then drop_taken_from(id) end
  end
end

-- Of whom there is no body left.
local function gone_from(page)
  local gone = {}
  if not page.full then return gone end
  for i, score in ipairs(call('ZMSCORE', MAIN, unpack(page.ids))) do gone[page.ids[i]] = not score end
  return gone
end

if cursor == '0' then leave_lines() end
if cursor == '' then
  mend_newest(now, limit)
else
  local page = page_of(MAIN, cursor, limit)
  for _, id in ipairs(page.ids) do mend(id, state_of(id), now) end
  next_cursor = cursor_after(page, gone_from(page))
end
return finish({next_cursor, repaired, expired, difference()})
