-- position: reads where messages stand; writes nothing
-- KEYS     house
-- ARGV     per message: id
-- RETURNS  per message: {position, ahead}, each -1 where it is in no queue. Position is the documented one: the rank in
--          main, in flight counted; then main's length and the rank in retry; then both lengths and the rank in scheduled.
--          Ahead is how many will be taken before it.
--- include house
--- include place
--- include limits
--- include turns
--- include ending
--- include flight
local function waiting(letter) return math.max(0, call('XLEN', STREAMS[letter]) - in_flight(letter)) end

local function ahead_in_line(id, rank)
  local body = read_body(id)
  if body and body.status == 'processing' then return 0 end
  local letter, ahead = letter_of(body), 0
  for _, higher in ipairs(PRIORITIES) do
    if higher == letter then break end
    ahead = ahead + waiting(higher)
  end
  if LINES[letter] then
    rank = call('ZRANK', LINES[letter], id) or 0
  else
    local before = '(' .. call('ZSCORE', MAIN, id)
    rank = rank - call('ZCOUNT', LINES.h, '-inf', before) - call('ZCOUNT', LINES.l, '-inf', before)
  end
  return ahead + math.max(0, rank - in_flight(letter))
end

local function find(id)
  local rank = call('ZRANK', MAIN, id)
  if rank then return {rank + 1, ahead_in_line(id, rank)} end
  local length = call('ZCARD', MAIN)
  local waiting_all = waiting('h') + waiting('n') + waiting('l')
  rank = call('ZRANK', RETRY, id)
  if rank then return {length + rank + 1, waiting_all + rank} end
  rank = call('ZRANK', SCHEDULED, id)
  if rank then
    local retries = call('ZCARD', RETRY)
    return {length + retries + rank + 1, waiting_all + retries + rank}
  end
  return {-1, -1}
end

local answers = {}
for i, id in ipairs(ARGV) do answers[i] = find(id) end
return answers
