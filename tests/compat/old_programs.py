"""Programs of the sorted-set queue, written from its contract alone: nothing of ours is imported here."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

TTL = 3600


def encoded(value: Any) -> str:
    """Lists, dicts, tuples and sets as JSON, everything else as ``str(value)``."""
    if isinstance(value, set | frozenset):
        value = list(value)
    return json.dumps(value) if isinstance(value, dict | list | tuple) else str(value)


def decoded(raw: str) -> Any:
    """What JSON says it is, else the text."""
    try:
        return json.loads(raw)
    except ValueError:
        return raw


class OldProducer:
    """Enqueues as the old code did, command by command.

    Args:
        client: answers in text.
        prefix: of the queue.
    """

    def __init__(self, client: Any, prefix: str) -> None:
        self._client = client
        self._prefix = prefix

    async def enqueue(self, data: Mapping[str, Any], callback: bool = False) -> str:
        """The id; of a duplicate, the existing one."""
        id = data.get("request_id") or str(uuid.uuid4())
        message = {"timestamp": time.time(), **data, "request_id": id, "status": "queued", "retry_count": 0}
        slot = None
        if data.get("user_id") and data.get("message"):
            text = f"{data['user_id']}:{data['message']}"
            slot = f"{self._prefix}:dedup:{hashlib.md5(text.encode()).hexdigest()}"
            existing = await self._client.get(slot)
            if existing:
                return str(existing)
            message["dedup_key"] = slot
        message["_has_callback"] = callback
        body = f"{self._prefix}:msg:{id}"
        await self._client.hset(body, mapping={name: encoded(value) for name, value in message.items()})
        await self._client.expire(body, TTL)
        await self._client.zadd(f"{self._prefix}:queue:main", {id: message["timestamp"]})
        if slot:
            await self._client.set(slot, id, ex=TTL)
        await self._client.hincrby(f"{self._prefix}:stats", "total_messages", 1)
        return str(id)


class OldWorker:
    """Works as the old code did, one message a call: it looks at the head of main and takes it out when it is done."""

    def __init__(self, client: Any, prefix: str) -> None:
        self._client = client
        self._prefix = prefix

    async def work(self, *, fails: bool = False) -> str | None:
        """The id that it worked on."""
        head = await self._client.zrange(f"{self._prefix}:queue:main", 0, 0)
        if not head:
            return None
        id = str(head[0])
        body = f"{self._prefix}:msg:{id}"
        await self._client.hset(body, "status", "processing")
        fields = await self._client.hgetall(body)
        await self._client.zrem(f"{self._prefix}:queue:main", id)
        if fails:
            count = int(fields["retry_count"]) + 1
            due = time.time() + 0.05 * 2 ** (count - 1)
            await self._client.hset(body, mapping={"retry_count": count, "status": "retry", "next_retry": due})
            await self._client.zadd(f"{self._prefix}:queue:retry", {id: due})
            await self._client.hincrby(f"{self._prefix}:stats", "retry_count", 1)
        else:
            await self._client.delete(body, *([fields["dedup_key"]] if "dedup_key" in fields else []))
        return id


async def requeue_dead_letter(client: Any, prefix: str, id: str) -> None:
    """The operators' script."""
    await client.hset(f"{prefix}:msg:{id}", mapping={"retry_count": 0, "status": "queued"})
    await client.zrem(f"{prefix}:queue:dlq", id)
    await client.zadd(f"{prefix}:queue:main", {id: time.time()})
