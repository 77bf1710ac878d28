-- join: nobody -> a consumer of the queue, with its groups made at 0 and the lease agreed
-- KEYS     house
-- ARGV     consumer lease_ms schema
-- RETURNS  {lease in force (ms), schema in force}; they differ from what was asked for where workers with another lease
--          live, or a newer engine wrote the queue, and then nothing was written
--- include house
--- include permissions
local consumer, lease_ms, schema = ARGV[1], number(ARGV[2]), number(ARGV[3])

-- A worker that lives reads or renews well within its lease.
local function somebody_lives(lease)
  for _, letter in ipairs(PRIORITIES) do
    for _, seen in ipairs(info_about('CONSUMERS', STREAMS[letter], GROUP)) do
      if not NO_WORKERS[seen.name] and seen.name ~= consumer and seen.idle < lease then return true end
    end
  end
end

local wrong = wrong_type()
if wrong then return wrong end
local missing = denied(consumer)
if missing then return redis.error_reply('NOPERM the user may not run ' .. missing) end

local found_schema = number(call('HGET', META, 'schema'), schema)
local found_lease = number(agreed('lease_ms'), lease_ms)
if found_schema > schema or (found_lease ~= lease_ms and somebody_lives(found_lease)) then
  return {found_lease, found_schema}
end
for _, letter in ipairs(PRIORITIES) do
  try('XGROUP', 'CREATE', STREAMS[letter], GROUP, '0', 'MKSTREAM')  -- BUSYGROUP where it is there already
  call('XGROUP', 'CREATECONSUMER', STREAMS[letter], GROUP, consumer)
end
call('HSET', META, 'lease_ms', lease_ms, 'schema', schema)
return {lease_ms, schema}
