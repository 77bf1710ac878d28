"""claim and adopt: queued -> processing; release: back again; renew: the lease afresh."""

from __future__ import annotations

import pytest

from streams_queue.answers import Claimed, NewMessage
from streams_queue.connection import Connection
from streams_queue.door import NotJoined
from streams_queue.errors import StreamsQueueError
from streams_queue.settings import Settings
from streams_queue.transitions import GROUP, Transitions
from transitions.tables import LEASE, LOCKED, META, NEVER, RETURNED, Queue, body


async def test_queued_becomes_processing(queue: Queue):
    await queue.enqueue("a", "b", ttl=60)
    assert await queue.table() == {
        "queue:main": ["a", "b"],
        "stream": {"a": NEVER, "b": NEVER},
        "msg:a": body("a", "queued", _sq_ttl="60"),
        "msg:b": body("b", "queued", _sq_ttl="60"),
        "stats": {"total_messages": 2},
        "meta": META,
        "ttl": {"msg:a": 60, "msg:b": 60},
    }
    (delivery,) = (await queue.claimed("w1")).deliveries
    assert (delivery.lease.id, delivery.lease.delivery) == ("a", "1")
    assert delivery.fields["text"] == b"text of a"
    assert await queue.table() == {
        "queue:main": ["a", "b"],
        "stream": {"a": "w1", "b": NEVER},
        "msg:a": body("a", "processing", _sq_ttl="60", _sq_owner="w1", _sq_deliveries="1"),
        "msg:b": body("b", "queued", _sq_ttl="60"),
        "lock:a": "w1",
        "stats": {"total_messages": 2},
        "meta": META,
        "ttl": {"msg:a": 60, "msg:b": 60, "lock:a": 30},
    }


async def test_what_has_no_room_is_not_read(queue: Queue):
    """8 MiB are enough for one batch: the bodies of those that go back would hold up the server for nothing."""
    await queue.enqueue(*map(str, range(20)), text="x" * 1_000_000)
    await queue.redis.config_resetstat()
    assert len((await queue.claimed("w1", 20)).deliveries) == 9
    assert (await queue.redis.info("commandstats"))["cmdstat_hgetall"]["calls"] == 9


async def test_what_a_lost_answer_brought_goes_back_free_for_all(queue: Queue):
    """Its lock goes too: else it would wait for a lease."""
    await queue.processing("a")
    entries = await queue.transitions.pending("w1")
    adopted = await queue.transitions.adopt("w1", entries, 0)
    assert (adopted.looked_at, adopted.deliveries) == (1, [])
    assert (await queue.table())["stream"] == {"a": RETURNED}
    (delivery,) = (await queue.claimed("w2")).deliveries
    assert (delivery.lease.id, delivery.lease.delivery) == ("a", "2")


async def test_a_lock_taken_by_hand_stays_when_a_lost_answer_s_message_goes_back(queue: Queue):
    await queue.processing("a")
    await queue.redis.set(queue.keys.lock("a"), "somebody", ex=60)
    await queue.transitions.adopt("w1", await queue.transitions.pending("w1"), 0)
    assert await queue.redis.get(queue.keys.lock("a")) == "somebody"


async def test_the_body_s_time_to_live_begins_anew(queue: Queue):
    await queue.enqueue("a", ttl=60)
    await queue.redis.expire(queue.keys.message("a"), 5)
    await queue.claim()
    assert (await queue.table())["ttl"]["msg:a"] == 60


async def test_the_highest_priority_comes_first_and_in_it_what_was_handed_back(queue: Queue):
    low, normal = await queue.processing("returned-low", priority="low"), await queue.processing("returned-normal")
    await queue.transitions.release("w1", [low, normal])
    await queue.enqueue("low", priority="low")
    await queue.enqueue("normal")
    await queue.enqueue("high", priority="high")
    assert [(await queue.claim())[0].id for _ in range(5)] == [
        "high",
        "returned-normal",
        "normal",
        "returned-low",
        "low",
    ]


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_no_more_than_asked_for_though_there_are_three_streams(queue: Queue, count):
    for priority in ("high", "normal", "low"):
        await queue.enqueue(f"{priority}1", f"{priority}2", priority=priority)
    assert len(await queue.claim(count=count)) == count
    assert (await queue.transitions.stats()).processing == count


async def test_no_message_goes_to_two_consumers(queue: Queue):
    await queue.enqueue("a")
    assert len(await queue.claim("w1")) == 1
    assert await queue.claim("w2") == []


async def test_nothing_while_paused(queue: Queue):
    await queue.enqueue("a")
    await queue.transitions.pause(True)
    before = await queue.table()
    assert await queue.claimed() == Claimed(True, False, 0, [])
    assert await queue.table() == before
    await queue.transitions.pause(False)
    assert len(await queue.claim()) == 1


# ---- what may not run


async def test_an_id_that_left_main_is_dropped_its_hash_bounded_never_deleted(queue: Queue):
    await queue.enqueue("a", priority="high")
    await queue.redis.zrem(queue.keys.main, "a")
    assert await queue.claimed() == Claimed(False, False, 1, [])
    assert await queue.table() == {
        "msg:a": body("a", "queued", "h"),
        "stats": {"total_messages": 1, "outside_taken_out": 1},
        "meta": META,
        "ttl": {"msg:a": 3600},
    }


async def test_a_bound_that_the_hash_has_is_kept(queue: Queue):
    await queue.enqueue("a", ttl=60)
    await queue.redis.zrem(queue.keys.main, "a")
    await queue.claim()
    assert (await queue.table())["ttl"] == {"msg:a": 60}


@pytest.mark.parametrize("where", ["retry", "scheduled"])
async def test_one_that_somebody_moved_to_wait_keeps_its_body_for_as_long_as_it_waits(queue: Queue, where):
    await queue.enqueue("a")
    await queue.redis.zrem(queue.keys.main, "a")
    await queue.redis.zadd(f"{queue.keys.prefix}:queue:{where}", {"a": await queue.now() + 7200})
    assert await queue.claim() == []
    assert "ttl" not in await queue.table()


async def test_a_dead_letter_made_by_hand_keeps_its_body_for_as_long_as_dead_letters_do(queue: Queue):
    await queue.enqueue("a")
    await queue.redis.zrem(queue.keys.main, "a")
    await queue.redis.zadd(queue.keys.dlq, {"a": await queue.now()})
    assert await queue.claim() == []
    assert (await queue.table())["ttl"] == {"msg:a": 30 * 86400}


@pytest.mark.parametrize("damage", ["gone", "without timestamp", "a list"])
async def test_a_body_that_ran_out_is_counted_shown_and_never_handed_out(queue: Queue, damage):
    await queue.enqueue("a", priority="high")
    key = queue.keys.message("a")
    match damage:
        case "gone":
            await queue.redis.delete(key)
        case "without timestamp":
            await queue.redis.hdel(key, "timestamp")
        case "a list":
            await queue.redis.delete(key)
            await queue.redis.rpush(key, "item")
    assert await queue.claimed() == Claimed(False, False, 1, [])
    table = await queue.table()
    left = table.pop("msg:a", None)
    bound = table["ttl"].pop("msg:a", None)
    assert (left is None) == (bound is None)
    assert table == {
        "lost": {"a": "now"},
        "done:a": "expired\n\n",
        "stats": {"total_messages": 1, "expired_messages": 1, **({} if left is None else {"outside_damaged": 1})},
        "meta": META,
        "ttl": {"done:a": 60},
    }


async def test_a_body_out_of_reach_is_not_run_out(queue: Queue, server):
    """A permission that lacks, a Cluster slot on its way: the script fails, the message stays."""
    await queue.enqueue("a")
    before = await queue.table()
    await queue.redis.execute_command("ACL", "SETUSER", "limited", "on", ">pw", "~*", "&*", "+@all", "-hgetall")
    connection = Connection(Settings(server.url.replace("://", "://limited:pw@")))
    await connection.open()
    try:
        with pytest.raises(StreamsQueueError):
            await Transitions(connection, queue.keys).claim("w2", 1)
    finally:
        await connection.close()
        await queue.redis.execute_command("ACL", "DELUSER", "limited")
    assert await queue.table() == {**before, "stream": {"a": "w2"}}, "the next sweep hands it over"


async def test_an_older_entry_of_a_message_that_moved_on_is_dropped(queue: Queue):
    await queue.enqueue("a")
    await queue.redis.xadd(queue.keys.streams["n"], {"id": "a"})
    assert [lease.id for lease in await queue.claim(count=5)] == ["a"]
    assert (await queue.table())["stream"] == {"a": "w1"}


@pytest.mark.parametrize("fields", [{"something": "else"}, {"id": "unknown"}, {"id": ""}])
async def test_entries_of_other_programs_are_dropped(queue: Queue, fields):
    await queue.redis.xadd(queue.keys.streams["n"], fields)
    await queue.enqueue("a")
    assert [lease.id for lease in await queue.claim(count=5)] == ["a"]
    table = await queue.table()
    assert table["stream"] == {"a": "w1"}
    assert "lost" not in table


async def test_a_lock_taken_by_hand_parks_the_message_until_it_is_gone(queue: Queue):
    await queue.enqueue("a", "b")
    await queue.redis.set(queue.keys.lock("a"), "operator", px=60_000)
    assert [lease.id for lease in await queue.claim(count=5)] == ["b"]
    table = await queue.table()
    assert table["stream"] == {"a": LOCKED, "b": "w1"}
    assert table["msg:a"] == body("a", "queued")
    entry = (await queue.redis.hget(queue.keys.message("a"), "_sq_entry")) or ""

    await queue.age_entry(entry, LOCKED)
    await queue.sweep()
    assert await queue.claim() == [], "the lock is there still"
    assert (await queue.table())["stream"]["a"] == LOCKED

    await queue.redis.delete(queue.keys.lock("a"))
    await queue.age_entry(entry, LOCKED)
    await queue.sweep()
    (lease,) = await queue.claim("w2")
    assert (lease.id, lease.delivery) == ("a", "1"), "nothing was charged"
    assert "_sq_crashes" not in (await queue.table())["msg:a"]


async def test_a_lock_of_another_type_parks_it_too(queue: Queue):
    await queue.enqueue("a")
    await queue.redis.rpush(queue.keys.lock("a"), "item")
    await queue.redis.expire(queue.keys.lock("a"), 60)
    assert await queue.claim() == []
    assert (await queue.table())["stream"] == {"a": LOCKED}


async def test_a_lock_of_one_s_own_lasts_for_a_whole_lease_again(queue: Queue):
    await queue.enqueue("a")
    await queue.redis.set(queue.keys.lock("a"), "w1", px=2000)
    assert len(await queue.claim("w1")) == 1
    assert (await queue.table())["ttl"]["lock:a"] == 30


async def test_one_bad_message_fails_none_of_its_neighbours(queue: Queue):
    await queue.enqueue("a", "b", "c", "d", "e", ttl=60)
    await queue.redis.hset(queue.keys.message("a"), mapping={"_sq_ttl": "inf", "_sq_deliveries": "many", "status": ""})
    await queue.redis.delete(queue.keys.message("b"))
    await queue.redis.zrem(queue.keys.main, "c")
    await queue.redis.set(queue.keys.lock("d"), "operator", px=60_000)
    assert [lease.id for lease in await queue.claim(count=5)] == ["a", "e"]


async def test_bodies_of_many_short_fields_are_large_too(queue: Queue):
    """A claim of eight messages with 130,000 fields each took Redis 6.2 half a second."""
    fields = [part for n in range(40_000) for part in (b"f%d" % n, b"")]
    for n in range(5):
        message = NewMessage(f"m{n}", "normal", 0.0, None, None, [*fields, b"_sq_types", b""])
        await queue.transitions.enqueue([message], dedup_expiry=60)
    assert [len(await queue.claim("w1", 10)) for _ in range(3)] == [4, 1, 0]


async def test_no_more_than_8_mib_of_bodies_the_rest_goes_back_uncharged(queue: Queue):
    text = "x" * (1 << 20)
    for n in range(12):
        await queue.enqueue(f"m{n}", text=text)
    assert [lease.id for lease in await queue.claim("w1", 12)] == [f"m{n}" for n in range(8)]
    table = await queue.table()
    assert [table["stream"][f"m{n}"] for n in range(8, 12)] == [RETURNED] * 4
    assert table["msg:m8"] | {"text": ""} == body("m8", "queued", text="")
    assert [(lease.id, lease.delivery) for lease in await queue.claim("w2", 12)] == [
        (f"m{n}", "1") for n in range(8, 12)
    ]


async def test_a_deleted_entry_that_was_handed_back_is_forgotten(queue: Queue):
    """Redis 6.2 keeps it pending for ever. `reconcile` gives the message another entry."""
    lease = await queue.processing("a")
    await queue.release(lease)
    await queue.redis.xdel(queue.keys.streams["n"], lease.entry[1:])
    assert await queue.claim() == []
    assert "stream" not in await queue.table()
    assert await queue.full_pass() == (1, 0, 0)
    assert [again.id for again in await queue.claim()] == ["a"]


# ---- not joined


async def test_a_queue_that_nobody_joined_hands_out_nothing(unjoined: Queue):
    await unjoined.enqueue("a")
    before = await unjoined.table()
    with pytest.raises(NotJoined):
        await unjoined.claim()
    with pytest.raises(NotJoined):
        await unjoined.transitions.adopt("w1", ["n1-1"], 1)
    assert await unjoined.table() == before


@pytest.mark.parametrize("lost", ["h", "n", "l"])
async def test_a_group_that_is_gone_leaves_no_claim_half_done(queue: Queue, lost):
    """What was taken before the error would have no worker, and cost a crash."""
    await queue.release(await queue.processing("returned"))
    for priority in ("high", "normal", "low"):
        await queue.enqueue(priority, priority=priority)
    await queue.redis.xgroup_destroy(queue.keys.streams[lost], GROUP)
    before = await queue.table()
    with pytest.raises(NotJoined):
        await queue.claim(count=5)
    assert await queue.table() == before
    await queue.transitions.join("w1", 30)
    assert {lease.id for lease in await queue.claim(count=5)} == {"returned", "high", "normal", "low"}


@pytest.mark.parametrize("max_messages", [1, 5])
async def test_a_group_made_anew_gives_nobody_what_he_holds(queue: Queue, max_messages):
    """It delivers from the beginning. The message stays with its holder, as the delivery that it was."""
    first, second = await queue.processing("first"), await queue.processing("second")
    await queue.enqueue("third")
    await queue.redis.xgroup_destroy(queue.keys.streams["n"], GROUP)
    await queue.transitions.join("w1", 30)
    claimed = [lease.id for _ in range(3) for lease in await queue.claim("w1", max_messages)]
    assert claimed == ["third"]
    assert (await queue.table())["stream"] == {"first": "w1", "second": "w1", "third": "w1"}
    assert await queue.transitions.renew("w1", [first]) == [True]
    assert [await queue.complete(lease) for lease in (first, second)] == ["completed"] * 2


# ---- adopt


async def test_adopt_does_what_claim_does_with_what_a_read_delivered(queue: Queue):
    await queue.enqueue("a", ttl=60)
    (entry,) = await queue.read_only("w1")
    before = await queue.table()
    assert before["stream"] == {"a": "w1"}
    assert before["msg:a"] == body("a", "queued", _sq_ttl="60")
    (delivery,) = (await queue.transitions.adopt("w1", [entry], 1)).deliveries
    assert (delivery.lease.id, delivery.lease.delivery) == ("a", "1")
    assert await queue.table() == {
        **before,
        "msg:a": body("a", "processing", _sq_ttl="60", _sq_owner="w1", _sq_deliveries="1"),
        "lock:a": "w1",
        "ttl": {"msg:a": 60, "lock:a": 30},
    }


async def test_the_lease_of_an_adopted_message_begins_with_the_adoption(queue: Queue):
    await queue.enqueue("a")
    (entry,) = await queue.read_only("w1")
    await queue.age_entry(entry, "w1")
    (delivery,) = (await queue.transitions.adopt("w1", [entry], 1)).deliveries
    assert await queue.sweep() == (0, 0)
    assert await queue.complete(delivery.lease) == "completed"


async def test_what_is_over_the_free_slots_goes_back_uncharged(queue: Queue):
    for priority in ("high", "normal", "low"):
        await queue.enqueue(priority, priority=priority)
    entries = await queue.read_only("w1")
    assert len(entries) == 3
    claimed = await queue.transitions.adopt("w1", entries, 1)
    assert (claimed.looked_at, [d.lease.id for d in claimed.deliveries]) == (3, ["high"])
    table = await queue.table()
    assert (table["stream"], table["stream:low"]) == ({"normal": RETURNED}, {"low": RETURNED})
    assert table["msg:low"] == body("low", "queued", "l*")
    assert [(lease.id, lease.delivery) for lease in await queue.claim("w2", 5)] == [("normal", "1"), ("low", "1")]


async def test_what_was_read_before_a_pause_goes_back_uncharged(queue: Queue):
    await queue.enqueue("a")
    entries = await queue.read_only("w1")
    await queue.transitions.pause(True)
    assert await queue.transitions.adopt("w1", entries, 5) == Claimed(True, False, 1, [])
    assert (await queue.table())["stream"] == {"a": RETURNED}


async def test_what_a_sweeper_took_meanwhile_is_not_adopted(queue: Queue):
    await queue.enqueue("a")
    (entry,) = await queue.read_only("w1")
    await queue.age_entry(entry, "w1")
    await queue.sweep()
    (other,) = await queue.claim("w2")
    before = await queue.table()
    assert (await queue.transitions.adopt("w1", [entry], 5)).deliveries == []
    assert await queue.table() == before
    assert await queue.complete(other, "w2") == "completed"


async def test_an_entry_deleted_after_the_read_is_forgotten(queue: Queue):
    await queue.enqueue("a", "b")
    (entry,) = await queue.read_only("w1")
    await queue.redis.xdel(queue.keys.streams["n"], entry[1:])
    assert (await queue.transitions.adopt("w1", [entry], 5)).deliveries == []
    assert (await queue.table())["stream"] == {"b": NEVER}


async def test_a_group_that_is_gone_leaves_no_adoption_half_done(queue: Queue):
    for priority in ("high", "normal"):
        await queue.enqueue(priority, priority=priority)
    entries = await queue.read_only("w1")
    await queue.redis.xgroup_destroy(queue.keys.streams["n"], GROUP)
    before = await queue.table()
    with pytest.raises(NotJoined):
        await queue.transitions.adopt("w1", entries, 5)
    assert await queue.table() == before


async def test_pending_finds_what_a_broken_read_delivered_and_counts_nothing(queue: Queue):
    await queue.enqueue("a")
    entries = await queue.read_only("w1")
    assert await queue.transitions.pending("w1") == entries
    assert await queue.transitions.pending("w2") == []
    (row,) = await queue.redis.xpending_range(queue.keys.streams["n"], GROUP, "-", "+", 10)
    assert row["times_delivered"] == 1


async def test_pending_finds_more_than_a_page(queue: Queue, monkeypatch: pytest.MonkeyPatch):
    await queue.enqueue("a", "b", "c", "d", "e")
    leases = await queue.claim("w1", 5)
    monkeypatch.setattr("streams_queue.transitions.BATCH", 2)
    assert await queue.transitions.pending("w1") == [lease.entry for lease in leases]


# ---- how deliveries are counted


async def test_the_delivery_number_is_the_hash_s_whatever_the_pending_list_says(queue: Queue):
    """Claims and XCLAIMs by hand raise Redis's own counter as they please."""
    lease = await queue.processing("a")
    for _ in range(3):
        await queue.redis.xclaim(queue.keys.streams["n"], GROUP, "w1", 0, [lease.entry[1:]])
    await queue.release(lease)
    (lease,) = await queue.claim()
    assert lease.delivery == "2"
    (row,) = await queue.redis.xpending_range(queue.keys.streams["n"], GROUP, "-", "+", 10)
    assert row["times_delivered"] > 2


async def test_a_delivery_number_never_goes_down(queue: Queue):
    numbers = []
    lease = await queue.processing("a")
    numbers.append(lease.delivery)
    await queue.release(lease)
    (lease,) = await queue.claim()
    numbers.append(lease.delivery)
    await queue.run_out(lease)
    await queue.sweep()
    (lease,) = await queue.claim()
    numbers.append(lease.delivery)
    await queue.retry(lease)
    await queue.make_due("a")
    await queue.transitions.promote()
    (lease,) = await queue.claim()
    numbers.append(lease.delivery)
    await queue.dead_letter(lease)
    await queue.requeue("a")
    (lease,) = await queue.claim()
    numbers.append(lease.delivery)
    assert numbers == ["1", "2", "3", "4", "5"]


# ---- renew and release


async def test_renew_sets_lock_idle_time_and_body_afresh(queue: Queue):
    lease = await queue.processing("a", ttl=60)
    await queue.age(lease, seconds=20)
    await queue.redis.pexpire(queue.keys.lock("a"), 5000)
    await queue.redis.expire(queue.keys.message("a"), 5)
    before = await queue.table()
    assert await queue.renew(lease) is True
    assert await queue.table() == {**before, "ttl": {"msg:a": 60, "lock:a": 30}}
    (row,) = await queue.redis.xpending_range(queue.keys.streams["n"], GROUP, "-", "+", 10)
    assert row["time_since_delivered"] < 10_000
    assert row["times_delivered"] == 1


async def test_renew_answers_for_each_what_is_lost(queue: Queue):
    removed, taken, held = [await queue.processing(id) for id in ("removed", "taken", "held")]
    await queue.transitions.remove(["removed"])
    await queue.run_out(taken)
    await queue.sweep()
    before = await queue.table()
    assert await queue.transitions.renew("w1", [removed, taken, held]) == [False, False, True]
    assert await queue.table() == before


async def test_processing_becomes_queued_again_where_it_stood_and_uncharged(queue: Queue):
    lease = await queue.processing("a", ttl=60)
    await queue.enqueue("b")
    await queue.redis.expire(queue.keys.message("a"), 5)
    before = await queue.table()
    assert await queue.release(lease) == "queued"
    after = await queue.table()
    assert after == {
        "queue:main": ["a", "b"],
        "stream": {"a": RETURNED, "b": NEVER},
        "msg:a": body("a", "queued", _sq_ttl="60", _sq_deliveries="1"),
        "msg:b": body("b", "queued"),
        "stats": before["stats"],
        "meta": META,
        "ttl": {"msg:a": 60},
    }
    assert await queue.release(lease) == "stale"
    assert await queue.table() == after


async def test_release_of_an_id_that_left_main_drops_it(queue: Queue):
    lease = await queue.processing("a", priority="high")
    await queue.redis.zrem(queue.keys.main, "a")
    assert await queue.release(lease) == "gone"
    table = await queue.table()
    assert set(table) == {"msg:a", "stats", "meta", "ttl"}
    assert table["ttl"] == {"msg:a": 3600}
    assert await queue.claim() == []


async def test_a_lock_that_outlasts_the_lease_is_for_a_holder_that_does_not_renew(queue: Queue):
    await queue.enqueue("a", "b")
    (delivery,) = (await queue.transitions.claim("w1", 1, lock=LEASE + 100)).deliveries
    assert (await queue.table())["ttl"]["lock:a"] == LEASE + 100
    await queue.age(delivery.lease)
    assert await queue.sweep() == (0, 0)
    assert await queue.transitions.renew("w1", [delivery.lease], lock=LEASE + 50) == [True]
    assert (await queue.table())["ttl"]["lock:a"] == LEASE + 50
    await queue.transitions.claim("w1", 1, lock=1)
    assert (await queue.table())["ttl"]["lock:b"] == LEASE, "a shorter one would look like a lock deleted by hand"
