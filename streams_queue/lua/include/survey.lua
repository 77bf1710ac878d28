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

-- One that was delivered to a consumer whom somebody deleted lives no more.
local function lives(letter, entry, ms, seq)
  if not entry_exists(letter, entry) then return false end
  return not is_delivered(letter, ms, seq) or call('XPENDING', STREAMS[letter], GROUP, entry, entry, 1)[1] ~= nil
end
