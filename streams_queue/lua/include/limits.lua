-- Rates: so many messages in each period, by the generic cell rate algorithm (ITU-T I.371). A key holds the time at which
-- its bucket will be full again, and ends then.

-- 'count/seconds', as P:meta has it; nil for anything else, which is no limit.
local function rate_of(text)
  local count, per = string.match(text or '', '^(%d+)/([%d.e+-]+)$')
  count, per = tonumber(count), tonumber(per)
  if count and per and count > 0 and per > 0 then return {per = per, interval = per / count} end
end

-- How many may go at once now, and in how many seconds one more.
local HAIR = 1e-6  -- of a second: what is due is not refused for the last digit of a number
local function allowance(key, rate, now)
  local full_at = math.max(number(try('GET', key), now), now)
  local left = math.max(0, math.floor((now + rate.per - full_at + HAIR) / rate.interval))
  return left, full_at + (left + 1) * rate.interval - rate.per - now
end

local function spend(key, rate, now, messages)
  local full_at = math.max(number(try('GET', key), now), now) + messages * rate.interval
  call('SET', key, seconds(full_at), 'PX', math.max(1, math.ceil((full_at - now) * 1000)))
end
