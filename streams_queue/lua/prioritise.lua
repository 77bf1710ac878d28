-- prioritise: queued -> queued, at the tail of another priority's line. What waits for a due time keeps its place, and comes
--             into that line then.
-- KEYS     house, then per message: message
-- ARGV     priority, then per message: id
-- RETURNS  per message: "changed" | "same" (it has this priority) | "processing" (a worker holds it) | "dead" (it is a dead
--          letter) | "missing" (it is in no queue, or its body ran out); all but the first as it was
--- include house
--- include place
--- include limits
--- include turns
--- include ending
local wanted = string.sub(ARGV[1], 1, 1)

local wrong = wrong_type()
if wrong then return wrong end
local now = server_time()

-- One without an entry came from an old producer, or lost it: `reconcile` gives it one, in the line that its hash says.
local function move(id, body)
  local score, entry = next_score(now), live_entry(body)
  leave_turns(body, id, now)  -- the others of its key come before it now
  if entry then
    call('HSET', message_key(id), '_sq_entry', join_line(id, wanted, score), 'status', 'queued')
    drop_entry(letter_of(body), entry)
  else
    call('ZADD', MAIN, score, id)
    for _, line in pairs(LINES) do call('ZREM', line, id) end
    if LINES[wanted] then call('ZADD', LINES[wanted], score, id) end
    call('HSET', message_key(id), '_sq_entry', wanted)
  end
  index_user(body, id, score, body._sq_ttl)
  enter_turns(body, id, score)
end

local function prioritise(id)
  local body, in_main = read_body(id), call('ZSCORE', MAIN, id)
  if not body or not place_of(id) then return 'missing' end
  if is_dead_letter(id) then return 'dead' end
  if in_main and (body._sq_owner or body.status == 'processing') then return 'processing' end
  if letter_of(body) == wanted then return 'same' end
  if in_main then move(id, body) else call('HSET', message_key(id), '_sq_entry', wanted) end
  return 'changed'
end

local answers = {}
for a = 2, #ARGV do answers[#answers + 1] = prioritise(ARGV[a]) end
return finish(answers)
