-- remove: anywhere -> gone
-- KEYS     house, then per message: message lock done
-- ARGV     only_dead, then per message: id
-- RETURNS  per message: 1 when there was one, else 0
--- include house
--- include place
--- include limits
--- include turns
--- include ending
local wrong = wrong_type()
if wrong then return wrong end

local only_dead = ARGV[1] == '1'

local function remove(id)
  local body = read_body(id)
  local there
  if only_dead then
    there = call('ZSCORE', DLQ, id)
  else
    there = body or place_of(id) or call('EXISTS', message_key(id)) == 1
  end
  if not there then return 0 end
  end_message(id, body, 'removed')
  end_messages()
  count('removed_messages')
  return 1
end

local answers = {}
for a = 2, #ARGV do answers[#answers + 1] = remove(ARGV[a]) end
return finish(answers)
