-- read: reads the hashes of messages; writes nothing
-- KEYS     house, then per message: message
-- ARGV     per message: id
-- RETURNS  per message: names and values, one after the other; empty where there is no hash
--- include house
local answers = {}
for i, id in ipairs(ARGV) do
  local body = try('HGETALL', message_key(id))
  if failed(body) and not string.find(body.err, 'WRONGTYPE', 1, true) then return body end  -- out of reach is not absent
  answers[i] = failed(body) and {} or body
end
return answers
