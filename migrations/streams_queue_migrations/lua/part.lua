-- part: held by the mover -> gone from this shard, with a proof that it has left; nothing where it has changed since
-- KEYS     house, then per message: message lock done moved
-- ARGV     owner proof_ttl version, then per message: id digest
-- RETURNS  per message: "moved" | "changed" (and held no more) | "lost" (it is the mover's no more);
--          an error for all where the number of shards was changed again since
--- include house
--- include place
--- include limits
--- include turns
--- include ending
local owner, proof_ttl = ARGV[1], ARGV[2]

local wrong = wrong_type() or outdated(ARGV[3])
if wrong then return wrong end

local function part(id, digest)
  if try('GET', moved_key(id)) == owner and call('EXISTS', message_key(id)) == 0 then return 'moved' end
  local body = read_body(id)
  if not body or body._sq_owner or try('GET', lock_key(id)) ~= owner then return 'lost' end
  if redis.sha1hex(table.concat(call('HGETALL', message_key(id)), '\0')) ~= digest then
    call('DEL', lock_key(id))
    return 'changed'
  end
  body._sq_listener = nil  -- for who listens nothing has happened
  end_message(id, body, 'moved', owner)
  end_messages()
  call('DEL', done_key(id))
  call('SET', moved_key(id), owner, 'EX', proof_ttl)
  count('moved_out_messages')
  return 'moved'
end

local answers = {}
for a = 4, #ARGV, 2 do answers[#answers + 1] = part(ARGV[a], ARGV[a + 1]) end
return finish(answers)
