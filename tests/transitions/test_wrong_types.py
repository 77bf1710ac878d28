"""A key of another type is found before the first write: an error in the middle would leave half of a script done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from streams_queue.answers import Failure
from streams_queue.errors import ConfigurationError
from streams_queue.model import Lease
from transitions.tables import Queue

Call = Callable[[Queue, Lease], Awaitable[Any]]

TRANSITIONS: dict[str, Call] = {
    "enqueue": lambda queue, _: queue.enqueue("new"),
    "claim": lambda queue, _: queue.claim("w1", 5),
    "adopt": lambda queue, lease: queue.transitions.adopt("w1", [lease.entry], 5),
    "renew": lambda queue, lease: queue.renew(lease),
    "complete": lambda queue, lease: queue.complete(lease),
    "retry": lambda queue, lease: queue.retry(lease),
    "dead_letter": lambda queue, lease: queue.dead_letter(lease),
    "release": lambda queue, lease: queue.release(lease),
    "sweep": lambda queue, _: queue.sweep(),
    "promote": lambda queue, _: queue.transitions.promote(),
    "remove": lambda queue, lease: queue.transitions.remove([lease.id]),
    "requeue": lambda queue, _: queue.requeue("dead"),
    "prioritise": lambda queue, _: queue.transitions.prioritise(["waiting"], "high"),
    "reconcile": lambda queue, _: queue.full_pass(),
    "prune": lambda queue, _: queue.transitions.prune("w1", 1000),
    "join": lambda queue, _: queue.transitions.join("w2", 30),
}


@pytest.mark.parametrize("name", TRANSITIONS)
async def test_a_house_key_of_another_type_is_named_and_nothing_is_written(queue: Queue, name: str):
    await queue.dead("dead")
    await queue.retrying("due")
    await queue.make_due("due")
    await queue.abandoned("abandoned")
    lease = await queue.processing("a")
    await queue.enqueue("waiting")
    await queue.old("outsider's")
    keys, redis = queue.keys, queue.redis
    for key in keys.house:
        if key == keys.stats:
            continue  # statistics never fail a script
        saved = f"saved:{key}"
        if await redis.exists(key):
            await redis.rename(key, saved)
        await redis.set(key, "text")
        before = await queue.table()
        with pytest.raises(ConfigurationError, match=f"WRONGTYPE {key} is a string, not a"):
            await TRANSITIONS[name](queue, lease)
        assert await queue.table() == before
        await redis.delete(key)
        if await redis.exists(saved):
            await redis.rename(saved, key)


IN_A_BATCH: dict[str, Callable[[Queue, list[Lease]], Awaitable[Any]]] = {
    "complete": lambda queue, leases: queue.transitions.complete(
        "w1", [(lease, b"") for lease in leases], result_ttl=1
    ),
    "retry": lambda queue, leases: queue.retry_many(leases),
    "dead_letter": lambda queue, leases: queue.transitions.dead_letter(
        "w1", [Failure(lease, 0.0, "error", "oops") for lease in leases], dead_letter_ttl=60
    ),
    "release": lambda queue, leases: queue.transitions.release("w1", leases),
    "renew": lambda queue, leases: queue.transitions.renew("w1", leases),
}


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("complete", ["stale", "completed"]),
        ("retry", ["stale", "retry"]),
        ("dead_letter", ["stale", "error"]),
        ("release", ["stale", "queued"]),
        ("renew", [False, True]),
    ],
)
async def test_a_message_of_another_type_fails_only_itself(queue: Queue, name: str, answers: list[object]):
    await queue.enqueue("bad", "good")
    leases = await queue.claim(count=2)
    await queue.redis.delete(queue.keys.message("bad"))
    await queue.redis.rpush(queue.keys.message("bad"), "item")
    await queue.redis.expire(queue.keys.message("bad"), 60)
    before = await queue.table()
    found = await IN_A_BATCH[name](queue, leases)
    assert found == answers
    after = await queue.table()
    assert after["msg:bad"] == before["msg:bad"] == "a list"
    assert "bad" in after["queue:main"], "`claim` or `reconcile` will count it as run out"


async def test_such_a_message_is_taken_out_by_remove_and_requeue(queue: Queue):
    await queue.dead("a")
    await queue.dead("b")
    for id in ("a", "b"):
        await queue.redis.delete(queue.keys.message(id))
        await queue.redis.set(queue.keys.message(id), "text")
    assert await queue.requeue("a") == "expired"
    assert await queue.transitions.remove(["b"]) == [True]
    table = await queue.table()
    assert "queue:dlq" not in table
    assert table["ttl"] == {"msg:a": 3600, "done:a": 60, "done:b": 60}
