-- strays: reads which messages stand in no queue
-- KEYS     house
-- ARGV     per message: id
-- RETURNS  per message: 0 (it has a place, or is none) | 1 (it ends by itself) | 2 (it would stay for ever)
--- include house
--- include place
--- include limits
--- include turns
--- include ending
local in_main = #ARGV > 0 and call('ZMSCORE', MAIN, unpack(ARGV)) or {}

local function stray(id)
  if place_of(id) or not read_body(id, {'timestamp'}) then return 0 end
  return call('TTL', message_key(id)) >= 0 and 1 or 2
end

local answers = {}
for a, id in ipairs(ARGV) do answers[a] = in_main[a] and 0 or stray(id) end
return answers
