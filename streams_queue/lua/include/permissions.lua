-- The first command that the workers of a queue need and this user may not run, if the server can say so (Redis 7.0 on).
-- Found later, it would leave a script half done, or a dead worker's messages where they are.
local function denied(consumer)
  if not redis.acl_check_cmd then return end
  local set, hash, text, stream = MAIN, message_key('x'), lock_key('x'), STREAMS.n
  local needed = {
    {'XADD', stream, '*', 'id', 'x'}, {'XACK', stream, GROUP, '0-1'}, {'XDEL', stream, '0-1'}, {'XLEN', stream},
    {'XREADGROUP', 'GROUP', GROUP, consumer, 'STREAMS', stream, '>'}, {'XRANGE', stream, '-', '+'},
    {'XAUTOCLAIM', stream, GROUP, consumer, '0', '0-0'}, {'XCLAIM', stream, GROUP, consumer, '0', '0-1'},
    {'XPENDING', stream, GROUP}, {'XINFO', 'GROUPS', stream}, {'XINFO', 'CONSUMERS', stream, GROUP},
    {'XGROUP', 'CREATE', stream, GROUP, '0'}, {'XGROUP', 'CREATECONSUMER', stream, GROUP, consumer},
    {'XGROUP', 'DELCONSUMER', stream, GROUP, consumer},
    {'ZADD', set, '0', 'x'}, {'ZREM', set, 'x'}, {'ZSCORE', set, 'x'}, {'ZMSCORE', set, 'x'}, {'ZRANK', set, 'x'},
    {'ZCARD', set}, {'ZCOUNT', set, '0', '0'}, {'ZRANGE', set, '0', '0'}, {'ZRANGEBYSCORE', set, '0', '0'},
    {'ZREVRANGEBYSCORE', set, '0', '0'}, {'ZREMRANGEBYRANK', set, '0', '0'}, {'ZREMRANGEBYSCORE', set, '0', '0'},
    {'HSET', hash, 'x', 'x'}, {'HGET', hash, 'x'}, {'HMGET', hash, 'x'}, {'HGETALL', hash}, {'HDEL', hash, 'x'},
    {'HINCRBY', STATS, 'x', '1'}, {'SET', text, 'x'}, {'GET', text}, {'MGET', text}, {'DEL', text}, {'EXISTS', text},
    {'EXPIRE', hash, '1'}, {'PERSIST', hash}, {'TTL', hash}, {'PTTL', text}, {'TYPE', hash}, {'TIME'},
    {'PUBLISH', PREFIX .. ':events:x', 'x'},
  }
  for _, command in ipairs(needed) do
    if not redis.acl_check_cmd(unpack(command)) then return command[1] .. ' on ' .. (command[2] or 'the server') end
  end
end
