-- Rates: so many messages in each period, by the generic cell rate algorithm (ITU-T I.371). A bucket holds `count` messages
-- and is evenly refilled over `per` seconds; all that is kept of it is when it will be full again, in a key that ends then.

-- 'count/seconds', as P:meta has it; nil for anything else, which is no limit. Longer than a year is no time to live.
local LONGEST_PERIOD = 366 * 86400
local function rate_of(text)
  local count, per = string.match(text or '', '^(%d+)/([%d.e+-]+)$')
  count, per = tonumber(count), tonumber(per)
  if count and per and count > 0 and per > 0 and per <= LONGEST_PERIOD then
    return {text = text, per = per, interval = per / count}
  end
end

-- A limit that is a whole number; nil for anything else, which is no limit.
local function whole_limit(name, most)
  local limit = tonumber(string.match(agreed(name) or '', '^%d+$'))
  return limit and limit > 0 and limit <= most and limit or nil
end

-- In how many seconds a bucket will be full, from what its key holds. A period at most: it may have been longer before, and
-- somebody may have written there.
local function owed_of(rate, full_at, now)
  local owed = number(full_at or nil, now) - now
  return owed > 0 and math.min(owed, rate.per) or 0
end

-- How many may go at once, and in how many seconds one more.
local HAIR = 1e-6  -- of a second: what is due is not refused for the last digit of a number
local function room_in(rate, owed)
  local left = math.max(0, math.floor((rate.per - owed + HAIR) / rate.interval))
  return left, owed + (left + 1) * rate.interval - rate.per
end

local function keep_owed(key, owed, now)
  call('SET', key, seconds(now + owed), 'PX', math.max(1, math.ceil(owed * 1000)))
end

-- The same of the bucket in a key.
local function allowance(key, rate, now) return room_in(rate, owed_of(rate, try('GET', key), now)) end

local function spend(key, rate, now, messages)
  keep_owed(key, owed_of(rate, try('GET', key), now) + messages * rate.interval, now)
end

local ACCEPTS = PREFIX .. ':accept'  -- the bucket of all that is accepted
