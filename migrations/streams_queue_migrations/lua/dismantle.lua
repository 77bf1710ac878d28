-- dismantle: the engine's own keys -> gone; the documented ones stay
-- KEYS     house, then: maintainer
-- ARGV     (none)
-- RETURNS  1
--- include house
call('UNLINK', STREAMS.h, STREAMS.n, STREAMS.l, LINES.h, LINES.l, BODILESS, PARKED, WAKE, KEYS[HOUSE + 1], META)
return 1
