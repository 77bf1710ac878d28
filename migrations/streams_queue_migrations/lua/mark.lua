-- mark: nobody moves the queue -> somebody does, for a while; or lets it go
-- KEYS     house
-- ARGV     owner ttl action; action is take, force (from whoever has it), renew or free
-- RETURNS  {who has it now, until when}; both empty where nobody has
--- include house
local owner, ttl, action = ARGV[1], number(ARGV[2], 0), ARGV[3]

local wrong = wrong_type()
if wrong then return wrong end
local now = server_time()
local held_by, held_until = unpack(call('HMGET', META, 'migration_owner', 'migration_until'))
local is_held = held_by and number(held_until, 0) > now

if action == 'free' then
  if held_by == owner then call('HDEL', META, 'migration_owner', 'migration_until') end
elseif action == 'force' or (action == 'take' and not is_held) or (action == 'renew' and held_by == owner) then
  call('HSET', META, 'migration_owner', owner, 'migration_until', seconds(now + ttl))
end
local result = call('HMGET', META, 'migration_owner', 'migration_until')
return {result[1] or '', result[2] or ''}
