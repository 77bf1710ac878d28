"""Finishing transitions prove "still mine" by entry, consumer and delivery, and write nothing otherwise."""

from __future__ import annotations

import pytest

from streams_queue.model import Lease
from transitions.tables import Queue

FINISHES = ("complete", "retry", "dead_letter", "release")


async def finish(queue: Queue, how: str, lease: Lease, by: str = "w1") -> str:
    answer: str = await getattr(queue, how)(lease, by)
    return answer


@pytest.mark.parametrize("how", FINISHES)
async def test_a_lost_lease_finishes_nothing(queue: Queue, how):
    """The worker slept through its lease, the message went to another: the sleeper writes nothing."""
    lease = await queue.abandoned("a", "zombie")
    await queue.sweep()
    before = await queue.table()
    assert await finish(queue, how, lease, "zombie") == "stale"
    assert await queue.table() == before
    (other,) = await queue.claim("w2")
    before = await queue.table()
    assert await finish(queue, how, lease, "zombie") == "stale"
    assert await queue.table() == before
    assert await queue.complete(other, "w2") == "completed"
    assert await finish(queue, how, lease, "zombie") == "stale"


@pytest.mark.parametrize("how", FINISHES)
async def test_stealing_the_entry_back_does_not_help(queue: Queue, how):
    lease = await queue.abandoned("a", "zombie")
    await queue.sweep()
    (other,) = await queue.claim("w2")
    await queue.age(lease, "zombie", seconds=0)
    assert (await queue.table())["stream"] == {"a": "zombie"}
    before = await queue.table()
    assert await finish(queue, how, lease, "zombie") == "stale"
    assert await queue.renew(lease, "zombie") is False
    assert await queue.table() == before
    assert await queue.complete(other, "w2") == "completed"


@pytest.mark.parametrize("how", FINISHES)
async def test_an_earlier_delivery_to_the_same_worker_is_another_one(queue: Queue, how):
    first = await queue.processing("a")
    await queue.release(first)
    (second,) = await queue.claim()
    assert (first.entry, first.delivery, second.entry, second.delivery) == (first.entry, "1", first.entry, "2")
    before = await queue.table()
    assert await finish(queue, how, first) == "stale"
    assert await queue.table() == before


@pytest.mark.parametrize("how", FINISHES)
async def test_a_lock_deleted_by_hand_means_that_the_holder_has_lost_the_message(queue: Queue, how):
    """The documented way to free a stuck message: the next sweep hands it over, and charges nobody."""
    lease = await queue.processing("a")
    await queue.redis.delete(queue.keys.lock("a"))
    before = await queue.table()
    assert await finish(queue, how, lease) == "stale"
    assert await queue.renew(lease) is False
    assert await queue.table() == before
    assert await queue.sweep() == (1, 0)
    (other,) = await queue.claim("w2")
    assert (other.id, other.delivery) == ("a", "2")
    assert "_sq_crashes" not in (await queue.table())["msg:a"]


@pytest.mark.parametrize("how", FINISHES)
async def test_a_lock_that_ran_out_in_an_outage_loses_nothing_that_nobody_claimed(queue: Queue, how):
    lease = await queue.processing("a")
    await queue.run_out(lease)
    assert await finish(queue, how, lease) != "stale"


async def test_renew_sets_a_lock_again_that_ran_out_in_an_outage(queue: Queue):
    lease = await queue.processing("a")
    await queue.run_out(lease)
    assert await queue.renew(lease) is True
    table = await queue.table()
    assert (table["lock:a"], table["ttl"]["lock:a"]) == ("w1", 30)
    assert await queue.sweep() == (0, 0)


@pytest.mark.parametrize("how", FINISHES)
@pytest.mark.parametrize("lock", ["operator", ["a list"]])
async def test_a_lock_that_somebody_else_holds_is_respected(queue: Queue, how, lock):
    lease = await queue.processing("a")
    key = queue.keys.lock("a")
    await queue.redis.delete(key)
    await (queue.redis.rpush(key, *lock) if isinstance(lock, list) else queue.redis.set(key, lock))
    await queue.redis.expire(key, 60)
    assert await finish(queue, how, lease) == "stale"


@pytest.mark.parametrize("how", FINISHES)
async def test_a_stream_deleted_under_a_delivery_takes_nothing_from_its_holder(queue: Queue, how):
    lease = await queue.processing("a")
    await queue.redis.delete(queue.keys.streams["n"])
    assert await finish(queue, how, lease) != "stale"


async def test_a_stale_finish_in_a_batch_stops_nobody_else_s(queue: Queue):
    await queue.enqueue("a", "b")
    a, b = await queue.claim(count=2)
    await queue.redis.delete(queue.keys.lock("a"))
    assert await queue.retry_many([a, b]) == ["stale", "retry"]


# ---- sent again after a lost reply


@pytest.mark.parametrize(
    ("how", "answer"), [("complete", "completed"), ("retry", "retry"), ("dead_letter", "error")]
)  # fmt: skip
async def test_a_finish_sent_again_answers_as_before_and_writes_nothing(queue: Queue, how, answer):
    lease = await queue.processing("a")
    assert await finish(queue, how, lease) == answer
    before = await queue.table()
    assert await finish(queue, how, lease) == answer
    assert await queue.table() == before


async def test_a_retry_sent_again_when_another_works_on_it_answers_as_before(queue: Queue):
    lease = await queue.retrying("a")
    await queue.make_due("a")
    await queue.transitions.promote()
    (other,) = await queue.claim("w2")
    before = await queue.table()
    assert await queue.retry(lease) == "retry"
    assert await queue.table() == before
    assert await queue.complete(other, "w2") == "completed"


async def test_of_two_finishers_only_the_holder_s_again_is_known(queue: Queue):
    zombie = await queue.abandoned("a", "zombie")
    await queue.sweep()
    (lease,) = await queue.claim("w2")
    assert await queue.complete(lease, "w2") == "completed"
    assert await queue.complete(zombie, "zombie") == "stale"
    assert await queue.complete(lease, "w2") == "completed"
