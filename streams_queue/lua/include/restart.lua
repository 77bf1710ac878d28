-- A message that starts anew: its errors and counts forgotten, its dedup slot taken back if that is free.
local function restart(id, body, dedup_expiry)
  call('HSET', message_key(id), 'retry_count', '0')
  call('HDEL', message_key(id), 'error', 'moved_to_dlq_at', 'last_error', 'last_error_time', 'next_retry',
       '_sq_reason', '_sq_crashes', '_sq_suspect', '_sq_settled')
  if is_slot(body.dedup_key) then call('SET', body.dedup_key, id, 'NX', 'EX', whole_seconds(dedup_expiry)) end
end
