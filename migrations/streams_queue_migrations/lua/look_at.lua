-- look_at: reads a page of one queue, and says what of it is not as it should be
-- KEYS     house
-- ARGV     queue cursor limit samples texts last_h last_n last_l; queue is main, retry, scheduled or dlq; texts is 1 to
--          look at every value's encoding; last_... is the last entry seen of a priority
-- RETURNS  {next cursor, ids looked at, what was found as a flat list of names and numbers, examples as a flat list of
--          names and ids, the last entries, ids in main less entries in the streams}
--- include house
--- include place
--- include limits
--- include turns
--- include ending
--- include survey
local SETS = {main = MAIN, retry = RETRY, scheduled = SCHEDULED, dlq = DLQ}
local BEFORE = {main = {}, retry = {MAIN}, scheduled = {MAIN, RETRY}, dlq = {MAIN, RETRY, SCHEDULED}}
local queue, cursor, limit, samples, texts = ARGV[1], ARGV[2], number(ARGV[3], 500), number(ARGV[4], 0), ARGV[5] == '1'
local last = {h = ARGV[6], n = ARGV[7], l = ARGV[8]}
local ENOUGH = 1048576      -- bytes of texts that one call reads, or a few large bodies would hold up the server
local SOON = 300            -- seconds: a body with less left is about to run out
local EPOCH = 1000000000    -- a score below is no time of this century in seconds
local AHEAD = {main = 60, retry = 10 * 365 * 86400, scheduled = 100 * 365 * 86400, dlq = 60}  -- and one so far ahead is none

local wrong = wrong_type()
if wrong then return wrong end
local now, found, examples = server_time(), {}, {}

local function cut(page, kept)
  page.full = page.full or kept < #page.ids
  for i = #page.ids, kept + 1, -1 do page.ids[i], page.scores[i] = nil, nil end
end

local function note(name, id)
  found[name] = (found[name] or 0) + 1
  if found[name] <= samples then
    examples[#examples + 1] = name
    examples[#examples + 1] = id
  end
end

-- What is left of a text when everything that is UTF-8 (RFC 3629) is taken out.
local SEQUENCES = {
  '[\240][\144-\191][\128-\191][\128-\191]', '[\241-\243][\128-\191][\128-\191][\128-\191]',
  '[\244][\128-\143][\128-\191][\128-\191]', '[\224][\160-\191][\128-\191]', '[\225-\236\238\239][\128-\191][\128-\191]',
  '[\237][\128-\159][\128-\191]', '[\194-\223][\128-\191]',
}
local function is_utf8(text)
  if not string.find(text, '[\128-\255]') then return true end
  for _, sequence in ipairs(SEQUENCES) do text = string.gsub(text, sequence, ' ') end
  return not string.find(text, '[\128-\255]')
end

local bytes = 0
local function look_at_texts(id)
  local texts, sound = call('HGETALL', message_key(id)), true
  for _, text in ipairs(texts) do
    bytes = bytes + #text
    sound = sound and is_utf8(text)
  end
  if not sound then note('undecodable', id) end
end

local function look_at_entry(id, body)
  local letter, entry = letter_of(body), live_entry(body)
  local ms, seq = string.match(entry or '', '^(%d+)%-(%d+)$')
  ms, seq = tonumber(ms), tonumber(seq)
  if not entry or not (lives(letter, entry, ms, seq) or is_parked(id, body)) then
    if body.status == 'processing' then note('left_in_work', id) end
    return note('no_entry', id)
  end
  if is_delivered(letter, ms, seq) then return end
  local last_ms, last_seq = string.match(last[letter], '^(%d+)%-(%d+)$')
  if last_ms and not is_after(ms, seq, {ms = tonumber(last_ms), seq = tonumber(last_seq)}) then
    note('out_of_order', id)
  else
    last[letter] = entry
  end
end

local function look_at_place(id, score)
  score = tonumber(score)
  if not (score >= EPOCH and score <= now + AHEAD[queue]) then note('no_time', id) end
  for _, set in ipairs(BEFORE[queue]) do
    if call('ZSCORE', set, id) then return note('two_places', id) end
  end
end

local free, locks = {}, {}  -- messages that nobody of ours holds, and their locks
local function look_at_locks()
  for i, id in ipairs(free) do locks[i] = lock_key(id) end
  if #locks == 0 or call('EXISTS', unpack(locks)) == 0 then return end
  for i, id in ipairs(free) do
    if call('EXISTS', locks[i]) == 1 then note('locked', id) end
  end
end

local FIELDS = {'timestamp', '_sq_entry', '_sq_owner', 'status'}
local function look_at(id, score)
  look_at_place(id, score)
  local body = read_body(id, FIELDS)
  if not body then
    return note(call('EXISTS', message_key(id)) == 1 and 'damaged' or 'bodiless', id)
  end
  local left = call('TTL', message_key(id))
  if left >= 0 and left <= SOON then note('ends_soon', id) end
  if texts then look_at_texts(id) end
  if queue ~= 'main' then return end
  if not body._sq_owner then free[#free + 1] = id end
  look_at_entry(id, body)
end

local page = page_of(SETS[queue], cursor, limit)
for i, id in ipairs(page.ids) do
  look_at(id, page.scores[i])
  if bytes > ENOUGH then
    cut(page, i)
    break
  end
end
look_at_locks()
local counts = {}
for name, times in pairs(found) do
  counts[#counts + 1] = name
  counts[#counts + 1] = times
end
local entries = call('XLEN', STREAMS.h) + call('XLEN', STREAMS.n) + call('XLEN', STREAMS.l)
return {cursor_after(page), #page.ids, counts, examples, {last.h, last.n, last.l}, call('ZCARD', MAIN) - entries}
