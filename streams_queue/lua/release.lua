-- release: processing -> queued where it stood, handed to `returned`, nothing charged
-- KEYS     house, then per message: message lock
-- ARGV     consumer, then per message: id entry delivery
-- RETURNS  per message: "queued" | "stale" | "gone" (it had left the line, and was dropped)
--- include house
--- include place
--- include limits
--- include turns
--- include ending
--- include ownership
local consumer = ARGV[1]

local wrong = wrong_type()
if wrong then return wrong end
local lease_ms = number(agreed('lease_ms'), 0)

local function release(id, entry, delivery)
  local body = read_body(id)
  if not holds(id, body, consumer, entry, delivery, lease_ms) then return 'stale' end
  local letter, live = letter_of(body), live_entry(body)
  if not call('ZSCORE', MAIN, id) then
    drop_taken_out(id, body)
    return 'gone'
  end
  hand_back(id, body, letter, live)
  return 'queued'
end

local answers = {}
for a = 2, #ARGV, 3 do answers[#answers + 1] = release(ARGV[a], ARGV[a + 1], ARGV[a + 2]) end
return finish(answers)
