"""Put every dead letter back in line, at its end: python requeue_dead_letters.py [PREFIX]."""

import os
import sys
import time

import redis

prefix = sys.argv[1] if len(sys.argv) > 1 else "chat_api"
url = os.environ.get("REDIS_URL", "redis://localhost:6379/0")

with redis.Redis.from_url(url, decode_responses=True) as r:
    for id in r.zrange(f"{prefix}:queue:dlq", 0, -1):
        r.hset(f"{prefix}:msg:{id}", mapping={"retry_count": 0, "status": "queued"})
        r.zrem(f"{prefix}:queue:dlq", id)
        r.zadd(f"{prefix}:queue:main", {id: time.time()})
        print(f"requeued {id}")
