-- roll: reads what stands in main, retry, scheduled or dlq, page by page, and what each message goes by; writes nothing
-- KEYS     house
-- ARGV     queue cursor limit field; a pass begins and ends at cursor "0"; an empty field: messages go by their ids
-- RETURNS  {next cursor, rows}; a row is {id, the field's value, types of the values}
--- include house
--- include survey
local set = ({main = MAIN, retry = RETRY, scheduled = SCHEDULED, dlq = DLQ})[ARGV[1]]
local wrong = wrong_type()
if wrong then return wrong end

local page, rows = page_of(set, ARGV[2], number(ARGV[3], 500)), {}
for i, id in ipairs(page.ids) do
  local seen = ARGV[4] ~= '' and try('HMGET', message_key(id), ARGV[4], '_sq_types') or {}
  rows[i] = {id, seen[1] or '', seen[2] or ''}
end
return {cursor_after(page), rows}
