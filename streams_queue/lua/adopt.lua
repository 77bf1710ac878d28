-- adopt: delivered by a read outside any script -> processing; entries of which the consumer does not know so far
-- KEYS     house
-- ARGV     consumer max_messages, then per entry: entry
-- RETURNS  {paused (0 or 1), 0, entries looked at, rows, milliseconds} as claim does; what may not run goes back uncharged
--- include house
--- include place
--- include limits
--- include turns
--- include ending
--- include ownership
--- include take
local consumer, max_messages = ARGV[1], number(ARGV[2], 1)

local wrong = wrong_type()
if wrong then return wrong end
local lease_ms = lease_in_force()
if not lease_ms then return NOT_JOINED end
local paused = agreed('paused') == '1'

-- Only what is still pending for this consumer: a sweeper may have passed since the read. Asked of all before the first
-- write: where a group is gone, this is the error that says so.
local delivered = {}
for i = 3, #ARGV do
  local letter, entry = string.sub(ARGV[i], 1, 1), string.sub(ARGV[i], 2)
  if call('XPENDING', STREAMS[letter], GROUP, entry, entry, 1, consumer)[1] then
    delivered[#delivered + 1] = {letter, entry}
  end
end

local now, rows = server_time(), {}
local left, wait_ms = queue_allows(now)
max_messages = math.min(max_messages, left)
for _, pair in ipairs(delivered) do
  local letter, entry = pair[1], pair[2]
  call('XCLAIM', STREAMS[letter], GROUP, consumer, 0, entry, 'JUSTID')  -- the lease begins now, not at the read
  local found = call('XRANGE', STREAMS[letter], entry, entry)
  local id, room = found[1] and found[1][2][2], not paused and #rows < max_messages
  local row = take(letter, entry, id, in_line(found), consumer, lease_ms, now, room, false, true)
  if row then rows[#rows + 1] = row end
end
spend_of_queue(#rows, now)
return finish({paused and 1 or 0, 0, #ARGV - 2, rows, #rows < left and 0 or wait_ms})
