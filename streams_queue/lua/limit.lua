-- limit: the limits of the queue -> others, all at once
-- KEYS     house
-- ARGV     (none), then fields and values; a limit that is not among them is none from now on
-- RETURNS  1
--- include house
--- include place
--- include limits
--- include turns
local wrong = wrong_type()
if wrong then return wrong end

local wanted = {}
for a = 1, #ARGV, 2 do wanted[ARGV[a]] = true end
local found = call('HGETALL', META)
for i = 1, #found, 2 do
  if string.sub(found[i], 1, 6) == 'limit_' and not wanted[found[i]] then call('HDEL', META, found[i]) end
end
if #ARGV > 0 then call('HSET', META, unpack(ARGV)) end

-- What has begun already counts among those of its key: as far as one call goes, which is further than workers have slots.
local MOST_HELD = 1000
local function count_begun(letter)
  local held = try('XPENDING', STREAMS[letter], GROUP, '-', '+', MOST_HELD)
  for _, row in ipairs(failed(held) and {} or held) do
    local entry = not NO_WORKERS[row[2]] and call('XRANGE', STREAMS[letter], row[1], row[1])[1]
    local body = entry and read_body(entry[2][2])
    if body and body._sq_owner then enter_turns(body, entry[2][2], BEGUN) end
  end
end
if at_once() then
  for _, letter in ipairs(PRIORITIES) do count_begun(letter) end
end
if call('EXISTS', PARKED) == 1 then call('HSET', META, 'parked_cursor', '0') end
return 1
