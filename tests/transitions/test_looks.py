"""oldest, workers, of_user: reads for who looks on; and amend, which mends a dead letter."""

from __future__ import annotations

import asyncio

import pytest

from transitions.tables import Queue, body


async def waits_since(queue: Queue) -> float | None:
    oldest = await queue.transitions.oldest()
    assert oldest.now == pytest.approx(await queue.now(), abs=5)
    return oldest.since


# ---- oldest


async def test_nobody_waits(queue: Queue):
    assert await waits_since(queue) is None
    await queue.processing("a")
    await queue.enqueue("later", delay=100)
    await queue.dead("d")
    assert await waits_since(queue) is None


async def test_the_oldest_is_the_first_that_nobody_works_on(queue: Queue):
    await queue.processing("a")
    await queue.enqueue("b")
    first = await waits_since(queue)
    await asyncio.sleep(0.002)  # entries count milliseconds
    await queue.enqueue("c", "d")
    assert first == pytest.approx(await queue.now(), abs=5)
    assert await waits_since(queue) == first
    await queue.claim()
    assert await waits_since(queue) != first


async def test_what_was_handed_back_waits_as_long_as_it_did(queue: Queue):
    lease = await queue.processing("a")
    came = int(lease.entry[1:].partition("-")[0]) / 1000
    await queue.enqueue("b")
    await queue.release(lease)
    assert await waits_since(queue) == came


@pytest.mark.parametrize("priority", ["high", "low"])
async def test_all_priorities_are_looked_at(queue: Queue, priority):
    await queue.enqueue("a", priority=priority)
    assert await waits_since(queue) is not None


async def test_before_any_worker_came(queue: Queue):
    await queue.enqueue("a")
    await queue.redis.xgroup_destroy(queue.keys.streams["n"], "workers")
    assert await waits_since(queue) is not None


# ---- workers


async def test_who_holds_what(queue: Queue):
    lease = await queue.processing("a")
    await queue.enqueue("b", priority="high")
    await queue.claim("w2")
    await queue.release(await queue.processing("handed-back"))
    await queue.enqueue("c")
    found = {worker.name: worker for worker in await queue.transitions.workers(100)}
    assert set(found) == {"w1", "w2"}, "and nobody who is no worker"
    assert (found["w1"].pending, found["w1"].held) == (1, [("a", int(lease.delivery))])
    assert (found["w2"].pending, found["w2"].held) == (1, [("b", 1)])
    assert found["w1"].idle < 5


async def test_the_sign_of_life_is_the_latest_in_any_stream(queue: Queue):
    await queue.age(await queue.processing("a"), seconds=1)
    (found,) = await queue.transitions.workers(100)
    assert found.idle < 1


async def test_some_of_what_they_hold(queue: Queue):
    await queue.enqueue(*[f"m{n}" for n in range(5)])
    await queue.claim(count=5)
    (found,) = await queue.transitions.workers(2)
    assert (found.pending, [held.id for held in found.held]) == (5, ["m0", "m1"])


async def test_a_worker_whose_message_was_damaged(queue: Queue):
    await queue.processing("a")
    await queue.redis.delete(queue.keys.message("a"))
    await queue.redis.sadd(queue.keys.message("a"), "x")
    (found,) = await queue.transitions.workers(100)
    assert found.held == [("a", 0)]
    await queue.redis.delete(queue.keys.message("a"))


# ---- of_user


async def test_a_queue_without_the_index_says_so(queue: Queue):
    await queue.enqueue("a", user_id="u1")
    assert await queue.transitions.of_user("u1", 10) is None


async def test_all_unfinished_messages_of_a_user(queue: Queue):
    await queue.transitions.index_users()
    await queue.enqueue("a", "b", user_id="u1", ttl=100)
    await queue.enqueue("c", user_id="u2", ttl=100)
    assert await queue.transitions.of_user("u1", 10) == ["a", "b"]
    assert await queue.transitions.of_user("u1", 1) == ["a"]
    assert await queue.transitions.of_user("u1", 10, 1) == ["b"]
    assert await queue.transitions.of_user("nobody", 10) == []


# ---- amend


async def died(queue: Queue, id: str) -> float:
    return float(await queue.redis.zscore(queue.keys.dlq, id))


async def amend(queue: Queue, id: str, score: float, removed=(), **fields: str) -> str:
    flat = [part.encode() for name, value in fields.items() for part in (name, value)]
    return await queue.transitions.amend(id, score, flat, [name.encode() for name in removed])


async def test_fields_are_written_and_removed_and_nothing_else_changes(queue: Queue):
    await queue.enqueue("a", colour="red")
    (lease,) = await queue.claim()
    await queue.dead_letter(lease)
    before = await queue.table()
    assert await amend(queue, "a", await died(queue, "a"), ["colour"], text="better") == "amended"
    wanted = {name: value for name, value in before["msg:a"].items() if name != "colour"} | {"text": "better"}
    assert await queue.table() == before | {"msg:a": wanted}


async def test_what_died_again_meanwhile_stays_as_it_is(queue: Queue):
    await queue.dead("a")
    score = await died(queue, "a")
    assert await queue.requeue("a") == "queued"
    assert await amend(queue, "a", score, text="late") == "missing"
    (lease,) = await queue.claim()
    await queue.dead_letter(lease)
    before = await queue.table()
    assert await amend(queue, "a", score, ["text"], text="late") == "changed"
    assert await queue.table() == before


async def test_what_is_no_dead_letter_or_has_no_body(queue: Queue):
    await queue.enqueue("waits")
    await queue.redis.zadd(queue.keys.dlq, {"waits": 5, "bodiless": 5})
    assert await amend(queue, "waits", 5, text="x") == "missing", "main wins"
    assert await amend(queue, "bodiless", 5, text="x") == "missing"
    assert await amend(queue, "none", 5, text="x") == "missing"
    assert (await queue.table())["msg:waits"] == body("waits", "queued")
