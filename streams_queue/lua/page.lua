-- page: reads ids of main or of the dead letters in the order of their scores, from a place on; writes nothing
-- KEYS     house
-- ARGV     set score id newest_first limit; set is main or dlq, and the page begins after this score and id
-- RETURNS  {server time, ids and scores, one after the other}
--- include house
local set = ({main = MAIN, dlq = DLQ})[ARGV[1]]
local score, id, newest_first, limit = ARGV[2], ARGV[3], ARGV[4] == '1', number(ARGV[5], 1)

-- The order of members of one score: byte by byte, while Lua's `<` goes by the locale.
local function precedes(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x < y end
  end
  return #a < #b
end

-- How many members stand before the id, or with it; it need not be there any more. Without an id: before all of its score,
-- or, the newest first, behind them.
local low, high = call('ZCOUNT', set, '-inf', '(' .. score), call('ZCOUNT', set, '-inf', score)
if id == '' then
  low = newest_first and high or low
else
  while low < high do
    local middle = math.floor((low + high) / 2)
    local member = call('ZRANGE', set, middle, middle)[1]
    if precedes(member, id) or (member == id and not newest_first) then low = middle + 1 else high = middle end
  end
end

local rows
if newest_first then
  local from = call('ZCARD', set) - low
  rows = call('ZREVRANGE', set, from, from + limit - 1, 'WITHSCORES')
else
  rows = call('ZRANGE', set, low, low + limit - 1, 'WITHSCORES')
end
return {seconds(server_time()), rows}
