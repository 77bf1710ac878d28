-- The keys that every script receives first, in the order of Keys.house (keys.py), and what all scripts share.
local MAIN, RETRY, SCHEDULED, DLQ = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local STREAMS = {h = KEYS[5], n = KEYS[6], l = KEYS[7]}
local STATS, META, LOST = KEYS[8], KEYS[9], KEYS[10]
local LINES = {h = KEYS[11], l = KEYS[12]}
local BODILESS, PARKED, WAKE = KEYS[13], KEYS[14], KEYS[15]
local HOUSE = 15

local PREFIX = string.sub(MAIN, 1, -#':queue:main' - 1)
local GROUP = 'workers'
local PRIORITIES = {'h', 'n', 'l'}

-- Consumers that are no workers: they hold what was handed back, what a foreign lock holds up, and what is suspected of
-- killing the workers that ran it, until somebody runs it alone.
local RETURNED, LOCKED, SUSPECTS = 'returned', 'locked', 'suspects'
local NO_WORKERS = {[RETURNED] = true, [LOCKED] = true, [SUSPECTS] = true}

local call, try = redis.call, redis.pcall
local function failed(reply) return type(reply) == 'table' and reply.err ~= nil end

local function message_key(id) return PREFIX .. ':msg:' .. id end
local function lock_key(id) return PREFIX .. ':lock:' .. id end
local function done_key(id) return PREFIX .. ':done:' .. id end
local function arriving_key(id) return PREFIX .. ':arriving:' .. id end
local function moved_key(id) return PREFIX .. ':moved:' .. id end

local function number(value, default) return tonumber(value) or default end

-- What the queue has agreed on: all of it is read at once, the first time that something is asked.
local AGREED = {'lease_ms', 'paused', 'user_index', 'limit_key', 'limit_max_length', 'limit_accept',
                'limit_accept_per_key', 'limit_work', 'limit_work_per_key', 'limit_concurrency_per_key', 'parked_cursor',
                'limit_normal_share', 'limit_low_share', 'credit_normal', 'credit_low', 'shards_version'}
local agreement
local function agreed(name)
  if not agreement then
    agreement = {}
    for i, value in ipairs(call('HMGET', META, unpack(AGREED))) do agreement[AGREED[i]] = value or nil end
  end
  return agreement[name]
end

-- The error for who goes by an older number of shards than this one does; nothing for all others.
local function outdated(version)
  if number(agreed('shards_version'), 0) > number(version, 0) then
    return redis.error_reply('RESHARDED its number of shards is another by now')
  end
end

-- What XINFO answers, names and values one after the other, as tables.
local function info_about(kind, stream, ...)
  local rows = try('XINFO', kind, stream, ...)
  local tables = {}
  if failed(rows) then return tables end  -- no stream, or no group
  for i, row in ipairs(rows) do
    tables[i] = {}
    for k = 1, #row, 2 do tables[i][row[k]] = row[k + 1] end
  end
  return tables
end

-- Seconds since the epoch, by the server's clock, to the microsecond.
local function server_time()
  local time = call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function seconds(time) return string.format('%.6f', time) end

-- A script that met a key of the wrong type in the middle would leave half of its work done: look before the first write.
local function wrong_type()
  local wanted = {
    [MAIN] = 'zset', [RETRY] = 'zset', [SCHEDULED] = 'zset', [DLQ] = 'zset', [LOST] = 'zset', [BODILESS] = 'zset',
    [LINES.h] = 'zset', [LINES.l] = 'zset', [PARKED] = 'zset', [WAKE] = 'zset',
    [STREAMS.h] = 'stream', [STREAMS.n] = 'stream', [STREAMS.l] = 'stream',
    [META] = 'hash',
  }
  for key, kind in pairs(wanted) do
    local found = call('TYPE', key).ok
    if found ~= kind and found ~= 'none' then
      return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. found .. ', not a ' .. kind)
    end
  end
end

-- Statistics come last and never fail a script: a counter that somebody made a text stays as it is.
local counted = {}
local function count(name, by) counted[name] = (counted[name] or 0) + (by or 1) end
local function write_counts()
  for name, by in pairs(counted) do
    if by ~= 0 then try('HINCRBY', STATS, name, by) end
  end
end

-- Tells the processes that listen to this message; the channels stand in its hash, separated by spaces.
local told = {}
local function tell(listeners, id, status, detail)
  if not listeners then return end
  for channel in string.gmatch(listeners, '%S+') do
    told[#told + 1] = {channel, id .. '\n' .. status .. '\n' .. (detail or '')}
  end
end
local function send_told()
  for _, event in ipairs(told) do try('PUBLISH', event[1], event[2]) end
end

local function finish(answer)
  write_counts()
  send_told()
  return answer
end
