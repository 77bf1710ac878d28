"""prioritise: queued -> queued, in another line."""

from __future__ import annotations

import pytest

from streams_queue.limits import Limits
from transitions.tables import LOCKED, META, NEVER, RETURNED, SUSPECTS, Queue, body


async def prioritise(queue: Queue, id: str, priority: str = "high") -> str:
    (answer,) = await queue.transitions.prioritise([id], priority)  # type: ignore[arg-type]
    return answer


async def drained(queue: Queue) -> list[str]:
    return [lease.id for lease in await queue.claim(count=100)]


async def test_it_takes_the_place_of_a_new_arrival(queue: Queue):
    await queue.enqueue("a", "b", ttl=60)
    await queue.enqueue("h", priority="high")
    assert await prioritise(queue, "a") == "changed"
    assert await queue.table() == {
        "queue:main": ["b", "h", "a"],
        "line:high": ["h", "a"],
        "stream": {"b": NEVER},
        "stream:high": {"h": NEVER, "a": NEVER},
        "msg:a": body("a", "queued", "h*", _sq_ttl="60"),
        "msg:b": body("b", "queued", _sq_ttl="60"),
        "msg:h": body("h", "queued", "h*"),
        "stats": {"total_messages": 3},
        "meta": META,
        "ttl": {"msg:a": 60, "msg:b": 60},
    }
    assert await queue.transitions.positions(["h", "a", "b"]) == [(2, 0), (3, 1), (1, 2)]
    assert await drained(queue) == ["h", "a", "b"]


@pytest.mark.parametrize("old", ["high", "normal", "low"])
@pytest.mark.parametrize("new", ["high", "normal", "low"])
async def test_from_every_line_to_every_other(queue: Queue, old, new):
    await queue.enqueue("first", "second", priority=old)
    await queue.enqueue("there", priority=new)
    assert await prioritise(queue, "first", new) == ("same" if old == new else "changed")
    table = await queue.table()
    order = ["first", "second", "there"] if old == new else ["second", "there", "first"]
    assert table["queue:main"] == order
    for line in ("high", "low"):
        assert table.get(f"line:{line}", []) == [id for id in order if line == (old if id == "second" else new)]
    told = await queue.transitions.positions(order)
    true = await drained(queue)
    assert [true.index(id) for id in order] == [ahead for _, ahead in told]
    assert await queue.full_pass() == (0, 0, 0)


@pytest.mark.parametrize("waits", ["retry", "scheduled"])
async def test_what_waits_for_a_due_time_keeps_its_place(queue: Queue, waits):
    if waits == "retry":
        await queue.retrying("a")
    else:
        await queue.enqueue("a", delay=100)
    before = await queue.table()
    assert await prioritise(queue, "a", "low") == "changed"
    after = await queue.table()
    assert after["msg:a"].pop("_sq_entry") == "l"
    assert before["msg:a"].pop("_sq_entry") == "n"
    assert after == before
    await queue.make_due("a")
    await queue.transitions.promote()
    table = await queue.table()
    assert (table["line:low"], table["stream:low"]) == (["a"], {"a": NEVER})


async def test_what_does_not_wait_is_left_alone(queue: Queue):
    await queue.dead("dead")
    await queue.complete(await queue.processing("done"))
    await queue.processing("held")
    await queue.enqueue("bodiless")
    await queue.redis.delete(queue.keys.message("bodiless"))
    await queue.redis.hset(queue.keys.message("orphan"), mapping=body("orphan", "queued"))
    await queue.redis.expire(queue.keys.message("orphan"), 60)
    before = await queue.table()
    ids = ["dead", "done", "held", "bodiless", "orphan", "nonesuch"]
    assert await queue.transitions.prioritise(ids, "high") == [
        "dead", "missing", "processing", "missing", "missing", "missing",
    ]  # fmt: skip
    assert await queue.table() == before


async def test_one_that_an_old_worker_says_he_works_on_is_left_alone(queue: Queue):
    await queue.enqueue("a")
    await queue.redis.hset(queue.keys.message("a"), "status", "processing")
    assert await prioritise(queue, "a") == "processing"


async def test_what_a_read_delivered_and_nobody_adopted_yet_goes_to_the_new_line_alone(queue: Queue):
    await queue.enqueue("a")
    (entry,) = await queue.read_only("w1")
    assert await prioritise(queue, "a") == "changed"
    assert (await queue.transitions.adopt("w1", [entry], 1)).deliveries == []
    assert await drained(queue) == ["a"]
    assert (await queue.table())["stream:high"] == {"a": "w1"}


async def test_what_was_handed_back_waits_like_all_others(queue: Queue):
    lease = await queue.processing("a")
    await queue.release(lease)
    assert (await queue.table())["stream"] == {"a": RETURNED}
    assert await prioritise(queue, "a", "low") == "changed"
    assert (await queue.table())["stream:low"] == {"a": NEVER}
    (again,) = await queue.claim()
    assert again.delivery == "2", "the number of a delivery never goes down"
    assert await queue.complete(lease) == "stale"
    assert await queue.complete(again) == "completed"


async def test_a_suspect_is_still_one(queue: Queue):
    await queue.abandoned("a")
    await queue.sweep(max_deliveries=2)
    assert (await queue.table())["stream"] == {"a": SUSPECTS}
    assert await prioritise(queue, "a") == "changed"
    assert (await queue.transitions.claim("w1", 5, alone=False)).deliveries == []
    assert (await queue.table())["stream:high"] == {"a": SUSPECTS}
    assert await drained(queue) == ["a"]


async def test_one_that_is_locked_by_hand_is_held_up_in_the_new_line(queue: Queue):
    await queue.enqueue("a")
    await queue.redis.set(queue.keys.lock("a"), "operator", px=60_000)
    assert await prioritise(queue, "a") == "changed"
    assert await drained(queue) == []
    assert (await queue.table())["stream:high"] == {"a": LOCKED}


async def test_an_old_producer_s_message_is_adopted_into_the_new_line(queue: Queue):
    await queue.old("a")
    await queue.old("b")
    assert await prioritise(queue, "a", "low") == "changed"
    assert await queue.quick_look() == (2, 0)
    table = await queue.table()
    assert (table["queue:main"], table["line:low"]) == (["b", "a"], ["a"])
    assert (table["stream"], table["stream:low"]) == ({"b": NEVER}, {"a": NEVER})


async def test_one_whose_entry_is_gone_gets_another(queue: Queue):
    await queue.enqueue("a")
    await queue.delete_stream()
    assert await prioritise(queue, "a") == "changed"
    assert (await queue.table())["stream:high"] == {"a": NEVER}


async def test_what_waits_for_the_turn_of_its_key_goes_behind_the_others_of_that_key(queue: Queue):
    await queue.transitions.limit(Limits(key="user_id", concurrency_per_key=1))
    await queue.enqueue("a", "b", "c", user_id="u1")
    (lease,) = await queue.claim("w1", 10)
    assert (await queue.table())["parked:u1"] == ["b", "c"]
    assert await prioritise(queue, "b", "low") == "changed"
    table = await queue.table()
    assert (table["key:u1"], table["parked"], table["parked:u1"]) == (["a", "c", "b"], ["c"], ["c"])
    assert await queue.claim("w2", 10) == []
    for id in ("a", "c", "b"):
        assert lease.id == id
        await queue.complete(lease)
        lease = next(iter(await queue.claim("w1", 10)), lease)
    assert "parked" not in await queue.table()


async def test_the_user_s_messages_are_in_the_order_of_the_line(queue: Queue):
    await queue.enqueue("a", "b", index_users=True, ttl=60, user_id="u1")
    await prioritise(queue, "a")
    assert (await queue.table())["user:u1"] == ["b", "a"]


async def test_an_old_producer_s_message_that_was_prioritised_is_no_outside_edit(queue: Queue):
    """It is in line as documented, and only got another priority before it was met."""
    await queue.old("a")
    assert await prioritise(queue, "a") == "changed"
    await queue.full_pass()
    stats = await queue.transitions.stats()
    assert (stats.edits, stats.counters["adopted_messages"]) == ({}, 1)
