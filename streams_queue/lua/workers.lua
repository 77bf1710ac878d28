-- workers: reads who works on the queue, and what they hold; writes nothing
-- KEYS     house
-- ARGV     limit; of messages for each stream
-- RETURNS  {consumers, messages}: a consumer is {name, milliseconds since its last sign of life, how many it holds}, a
--          message {consumer, id, delivery number}
--- include house
local limit = number(ARGV[1], 1)

local names, seen = {}, {}
for _, letter in ipairs(PRIORITIES) do
  for _, consumer in ipairs(info_about('CONSUMERS', STREAMS[letter], GROUP)) do
    local known = seen[consumer.name]
    if known then
      known.idle, known.pending = math.min(known.idle, consumer.idle), known.pending + consumer.pending
    elseif not NO_WORKERS[consumer.name] then
      names[#names + 1] = consumer.name
      seen[consumer.name] = {idle = consumer.idle, pending = consumer.pending}
    end
  end
end

local consumers, held = {}, {}
for i, name in ipairs(names) do consumers[i] = {name, seen[name].idle, seen[name].pending} end
for _, letter in ipairs(PRIORITIES) do
  local pending = #names > 0 and try('XPENDING', STREAMS[letter], GROUP, '-', '+', limit) or {}
  for _, row in ipairs(failed(pending) and {} or pending) do
    local entry = seen[row[2]] and call('XRANGE', STREAMS[letter], row[1], row[1], 'COUNT', 1)[1]
    local id = entry and entry[2] and entry[2][2]
    local delivery = id and try('HGET', message_key(id), '_sq_deliveries')
    if id then held[#held + 1] = {row[2], id, type(delivery) == 'string' and delivery or ''} end
  end
end
return {consumers, held}
