-- Looking through what stands in Redis: sorted sets page by page, and which entries of the streams live.

-- A sorted set page by page, in its order. A cursor is the score to go on with, and how many of that score were looked
-- at: ids that leave the set meanwhile do not shift it. A pass begins and ends at "0".
local function page_of(set, cursor, limit)
  local from, seen = string.match(cursor, '^(%S+) (%d+)$')
  if not from then from, seen = '-inf', 0 end
  local flat = call('ZRANGEBYSCORE', set, from, '+inf', 'WITHSCORES', 'LIMIT', seen, limit)
  local page = {from = from, seen = seen, full = #flat == 2 * limit, ids = {}, scores = {}}
  for i = 1, #flat, 2 do
    page.ids[#page.ids + 1], page.scores[#page.scores + 1] = flat[i], flat[i + 1]
  end
  return page
end

-- Where to go on; `gone` names ids of the page that the script took out of the set.
local function cursor_after(page, gone)
  if not page.full then return '0' end
  local last, same = page.scores[#page.scores], 0
  for i, id in ipairs(page.ids) do
    if page.scores[i] == last and not (gone and gone[id]) then same = same + 1 end
  end
  if last == page.from then same = same + page.seen end
  return last .. ' ' .. same
end

-- Which entries of the streams live: a worker will still be given them, or holds them.
local delivered_up_to = {}
for _, letter in ipairs(PRIORITIES) do
  local last = '0-0'
  for _, group in ipairs(info_about('GROUPS', STREAMS[letter])) do
    if group.name == GROUP then last = group['last-delivered-id'] end
  end
  local ms, seq = string.match(last, '^(%d+)%-(%d+)$')
  delivered_up_to[letter] = {ms = tonumber(ms), seq = tonumber(seq)}
end

local function is_after(ms, seq, other) return ms > other.ms or (ms == other.ms and seq > other.seq) end
local function is_delivered(letter, ms, seq) return not is_after(ms, seq, delivered_up_to[letter]) end

-- Whoever asks for many entries of a stream mostly asks for one after the other: after the first few, a whole stretch of
-- it is read at once. Where they lie apart, that is given up.
local SINGLY, STRETCHES, LENGTH = 8, 3, 500
local asked, stretches = {h = 0, n = 0, l = 0}, {h = {}, n = {}, l = {}}

local function stretch_from(letter, entry, ms, seq)
  local rows = call('XRANGE', STREAMS[letter], entry, '+', 'COUNT', LENGTH)
  local stretch = {first = {ms = ms, seq = seq}, entries = {}}
  for _, row in ipairs(rows) do stretch.entries[row[1]] = true end
  local last_ms, last_seq = string.match(#rows == LENGTH and rows[LENGTH][1] or '', '^(%d+)%-(%d+)$')
  stretch.last = {ms = tonumber(last_ms) or math.huge, seq = tonumber(last_seq) or 0}
  return stretch
end

local function is_in_stream(letter, entry, ms, seq)
  asked[letter] = asked[letter] + 1
  if asked[letter] <= SINGLY then return entry_exists(letter, entry) end
  local read = stretches[letter]
  local stretch = read[#read]
  if not stretch or is_after(ms, seq, stretch.last) then
    if #read == STRETCHES then return entry_exists(letter, entry) end
    stretch = stretch_from(letter, entry, ms, seq)
    read[#read + 1] = stretch
  elseif is_after(stretch.first.ms, stretch.first.seq, {ms = ms, seq = seq}) then
    return entry_exists(letter, entry)
  end
  return stretch.entries[entry] == true
end

-- Whether an entry is in its stream, and whether it lives: one that was delivered and that nobody holds, as one whose
-- consumer somebody deleted, does not.
local function look_for_entry(letter, entry, ms, seq)
  if not is_in_stream(letter, entry, ms, seq) then return false, false end
  return true, not is_delivered(letter, ms, seq) or call('XPENDING', STREAMS[letter], GROUP, entry, entry, 1)[1] ~= nil
end
local function lives(letter, entry, ms, seq) return select(2, look_for_entry(letter, entry, ms, seq)) end
