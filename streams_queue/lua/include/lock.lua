-- Takes a lock, or holds a shared one on: 0 when another holds it, 1 when it was free, 2 when the owner held it before.
local function take_lock(key, owner, ttl_ms, shared)
  local holder = redis.pcall('GET', key)
  if type(holder) == 'table' and shared then return redis.error_reply('WRONGTYPE ' .. key .. ' is no lock') end
  if holder and not (holder == owner and shared) then return 0 end
  redis.call('DEL', key)  -- allowed at maxmemory, and what follows an allowed write is allowed too
  redis.call('SET', key, owner, 'PX', ttl_ms)
  return holder and 2 or 1
end
