-- tidy: entries of a stream that no message goes by -> gone
-- KEYS     house
-- ARGV     priority after limit; priority is h, n or l; after is the entry to go on behind, or "-"
-- RETURNS  {the entry to go on behind, "-" at the end, entries looked at, entries dropped}
--- include house
--- include place
--- include limits
--- include turns
--- include ending
local letter, after, limit = ARGV[1], ARGV[2], number(ARGV[3], 500)

local wrong = wrong_type()
if wrong then return wrong end
local dropped = 0
local entries = call('XRANGE', STREAMS[letter], after == '-' and '-' or '(' .. after, '+', 'COUNT', limit)
for _, entry in ipairs(entries) do
  local id = entry[2][2]
  local body = id and call('ZSCORE', MAIN, id) and read_body(id)
  if not body or body._sq_entry ~= letter .. entry[1] then
    drop_entry(letter, entry[1])
    dropped = dropped + 1
  end
end
local last = entries[#entries]
return {#entries == limit and last[1] or '-', #entries, dropped}
