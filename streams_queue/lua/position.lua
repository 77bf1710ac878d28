-- position: reads where messages stand; writes nothing
-- KEYS     house
-- ARGV     per message: id
-- RETURNS  per message: {position, ahead}, each -1 where it is in no queue. Position is the documented one: the rank in
--          main, in flight counted; then main's length and the rank in retry; then both lengths and the rank in scheduled.
--          Ahead is how many will be taken before it, with the shares of lower priorities.
--- include house
--- include place
--- include limits
--- include turns
--- include ending
--- include flight
--- include shares
local held, lengths = {}, {}
for _, letter in ipairs(PRIORITIES) do
  held[letter] = in_flight(letter)
  lengths[letter] = math.max(0, call('XLEN', STREAMS[letter]) - held[letter])
end

-- In which slot from now on a message is taken that has so many before it in its line. Each line gets what it is due of
-- the slots while a higher one waits, and a message of a lower line comes no later than its share has it.
local function slot_of(letter, before)
  local others, lower, found = 0, {}, false
  for _, other in ipairs(PRIORITIES) do
    if other == letter then found = true elseif found then append(lower, other) else others = others + lengths[other] end
  end
  local slot, last = others + before + 1, 0
  while slot ~= last do  -- the sum of shares is below 1: it comes to rest after O(log n) steps
    last, slot = slot, others + before + 1
    for _, other in ipairs(lower) do slot = slot + math.min(lengths[other], slots_due(other, last)) end
  end
  if shares[letter] == 0 then return slot end
  return math.min(slot, math.max(before + 1, math.ceil((SLOT * (before + 1) - credits[letter]) / shares[letter])))
end

local function ahead_in_line(id, rank)
  local body = read_body(id)
  if body and body.status == 'processing' then return 0 end
  local letter = letter_of(body)
  if LINES[letter] then
    rank = call('ZRANK', LINES[letter], id) or 0
  else
    local before = '(' .. call('ZSCORE', MAIN, id)
    rank = rank - call('ZCOUNT', LINES.h, '-inf', before) - call('ZCOUNT', LINES.l, '-inf', before)
  end
  return slot_of(letter, math.max(0, rank - held[letter])) - 1
end

local function find(id)
  local rank = call('ZRANK', MAIN, id)
  if rank then return {rank + 1, ahead_in_line(id, rank)} end
  local length = call('ZCARD', MAIN)
  local waiting_all = lengths.h + lengths.n + lengths.l
  rank = call('ZRANK', RETRY, id)
  if rank then return {length + rank + 1, waiting_all + rank} end
  rank = call('ZRANK', SCHEDULED, id)
  if rank then
    local retries = call('ZCARD', RETRY)
    return {length + retries + rank + 1, waiting_all + retries + rank}
  end
  return {-1, -1}
end

read_shares()
local answers = {}
for i, id in ipairs(ARGV) do answers[i] = find(id) end
return answers
