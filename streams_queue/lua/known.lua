-- known: reads whether an `enqueue` of this id and slot would double a message; writes nothing
-- KEYS     house, then: message done slot
-- ARGV     id deduplicated
-- RETURNS  {id, status} of the message that is there; empty where there is none
--- include house
--- include place
local id, slot = ARGV[1], ARGV[2] == '1' and KEYS[HOUSE + 3]

local FIELDS = {'timestamp', 'status'}
local function status_of(id)
  local body = read_body(id, FIELDS)
  if body and place_of(id) then return body.status or 'queued' end
  local marker = try('GET', done_key(id))
  return type(marker) == 'string' and string.match(marker, '^%w+') or nil
end

local status = status_of(id)
if status then return {id, status} end
local holder = slot and try('GET', slot)
if type(holder) ~= 'string' or holder == id then return {} end
local held = read_body(holder, FIELDS)
if held or place_of(holder) then return {holder, held and held.status or 'queued'} end
return {}
