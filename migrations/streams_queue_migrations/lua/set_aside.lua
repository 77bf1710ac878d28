-- set_aside: ids that stand in a queue and have no body -> lost, where a person can see them
-- KEYS     house
-- ARGV     kept_for, then per message: id; what is left of a damaged body stays for kept_for seconds
-- RETURNS  per message: 1, or 0 where it has a body now, or stands nowhere
--- include house
--- include place
--- include limits
--- include turns
--- include ending
local kept_for = number(ARGV[1])

local wrong = wrong_type()
if wrong then return wrong end
local now = server_time()

local function set_aside(id)
  call('ZREM', BODILESS, id)
  if not place_of(id) or read_body(id) then return 0 end
  expire_message(id, now)
  if call('EXISTS', message_key(id)) == 1 then call('EXPIRE', message_key(id), kept_for) end
  return 1
end

local answers = {}
for a = 2, #ARGV do answers[#answers + 1] = set_aside(ARGV[a]) end
return finish(answers)
