-- lock: free -> held by the owner. A shared lock is also taken by whoever bears the name that holds it, and then lasts anew.
-- KEYS     lock
-- ARGV     owner ttl_ms shared
-- RETURNS  0 when another holds it, 1 when the owner has taken it, 2 when it held it before and holds it on
--- include lock
return take_lock(KEYS[1], ARGV[1], ARGV[2], ARGV[3] == '1')
