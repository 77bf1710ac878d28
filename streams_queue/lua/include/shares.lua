-- The shares of the slots that lower priorities get while a higher one waits, too. All in millionths, so that sums are
-- exact. A line is paid in whole slots; what it has earned beyond them is its credit, kept in P:meta.
local SLOT = 1000000
local MOST = 1000 * SLOT
local NORMAL, LOW = 0.2, 0.05
local shares, credits

-- What somebody wrote there by hand and is no share, or leaves nothing for high ones, counts as not written.
local function millionths(name, default)
  local share = number(agreed(name), default)
  if not (share >= 0 and share < 1) then share = default end
  return math.floor(share * SLOT + 0.5)
end

local function credit_of(name)
  local credit = number(agreed(name), 0)
  return credit > -MOST and credit < MOST and math.floor(credit) or 0
end

local function read_shares()
  if shares then return end
  shares = {h = 0, n = millionths('limit_normal_share', NORMAL), l = millionths('limit_low_share', LOW)}
  if shares.n + shares.l >= SLOT then shares.n, shares.l = NORMAL * SLOT, LOW * SLOT end
  credits = {h = 0, n = credit_of('credit_normal'), l = credit_of('credit_low')}
end

-- How many of the next so many slots a lower line is due, as long as it waits for a higher one.
local function slots_due(letter, slots)
  if shares[letter] == 0 then return 0 end
  return math.max(0, math.floor((credits[letter] + shares[letter] * slots) / SLOT))
end

-- After a call that gave away so many slots, and so many of them to this line. One that did not wait for a higher one, or
-- waits no more, begins anew.
local credits_changed
local function settle_credit(letter, waits, slots, taken)
  local credit = waits and shares[letter] > 0 and credits[letter] + shares[letter] * slots - SLOT * taken or 0
  credits_changed = credits_changed or credit ~= credits[letter]
  credits[letter] = credit
end

local function write_credits()
  if credits_changed then call('HSET', META, 'credit_normal', credits.n, 'credit_low', credits.l) end
end
