"""enqueue with limits: nothing -> queued, scheduled, or refused; every key before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from streams_queue import Limits, Rate
from streams_queue.answers import Enqueued, NewMessage, Outdated, Refused
from streams_queue.errors import QueueUnavailable
from streams_queue.limits import to_meta
from transitions.tables import DEDUP_EXPIRY, META, NEVER, Queue, body, new

HOUR = 3600.0


async def limited(queue: Queue, **limits: Any) -> dict[str, str]:
    """Set these limits; the agreements as they are then."""
    await queue.transitions.limit(Limits(**limits))
    return {**META, **to_meta(Limits(**limits))}


async def sent(queue: Queue, messages: Sequence[NewMessage], *, in_order: bool = False) -> list[Enqueued | Refused]:
    answers = await queue.transitions.enqueue_on_replicas(
        messages, dedup_expiry=DEDUP_EXPIRY, replicas=0, in_order=in_order
    )
    return [answer for answer, _ in answers if not isinstance(answer, Outdated)]


def of(user: str, *ids: str, **options: Any) -> list[NewMessage]:
    return [new(id, user_id=user, **options) for id in ids]


def refused(answers: Sequence[Enqueued | Refused]) -> list[str]:
    """For each, the limit that refused it, or nothing."""
    return [answer.limit if isinstance(answer, Refused) else "" for answer in answers]


# ---- the length


async def test_a_full_queue_refuses_and_writes_nothing(queue: Queue):
    meta = await limited(queue, max_length=2)
    assert refused(await queue.offer("a", "b")) == ["", ""]
    before = await queue.table()
    assert before["meta"] == meta
    assert await queue.offer("c", unique="k") == [Refused("max_length", "2", None)]
    assert await queue.table() == {**before, "stats": {"total_messages": 2, "refused_max_length": 1}}


async def test_what_a_call_accepts_counts_for_its_later_messages(queue: Queue):
    await limited(queue, max_length=2)
    assert refused(await queue.offer("a", "b", "c")) == ["", "", "max_length"]
    table = await queue.table()
    assert (table["queue:main"], table["stream"]) == (["a", "b"], {"a": NEVER, "b": NEVER})


async def test_all_that_is_unfinished_counts_and_no_more(queue: Queue):
    await queue.dead("dead")
    await queue.complete(await queue.processing("done"))
    await queue.retrying("retry")
    await queue.processing("processing")
    await queue.enqueue("scheduled", delay=100)
    await queue.enqueue("queued")
    await limited(queue, max_length=5)
    assert refused(await queue.offer("a", "b", delay=100)) == ["", "max_length"]
    await queue.transitions.remove(["queued"])
    assert refused(await queue.offer("b", "c")) == ["", "max_length"]


async def test_what_was_accepted_comes_back_into_a_full_queue(queue: Queue):
    """A dead letter that is requeued, a message whose time has come, an id that an old producer wrote."""
    await queue.dead("dead")
    await queue.enqueue("scheduled", delay=100)
    await limited(queue, max_length=1)
    assert await queue.requeue("dead") == "queued"
    await queue.make_due("scheduled")
    await queue.transitions.promote()
    await queue.old("old")
    await queue.quick_look()
    assert (await queue.table())["queue:main"] == ["dead", "scheduled", "old"]
    assert refused(await queue.offer("a")) == ["max_length"]


# ---- rates


async def test_a_rate_of_the_queue(queue: Queue):
    meta = await limited(queue, accept=Rate(2, per=HOUR))
    first = await queue.offer("a", "b", "c", ttl=60)
    assert refused(first) == ["", "", "accept"]
    assert isinstance(first[2], Refused)
    assert first[2].value == f"2/{HOUR}"
    assert first[2].retry_after == pytest.approx(HOUR / 2)
    assert await queue.table() == {
        "queue:main": ["a", "b"],
        "stream": {"a": NEVER, "b": NEVER},
        "msg:a": body("a", "queued", _sq_ttl="60"),
        "msg:b": body("b", "queued", _sq_ttl="60"),
        "accept": "now+3600",
        "stats": {"total_messages": 2, "refused_accept": 1},
        "meta": meta,
        "ttl": {"msg:a": 60, "msg:b": 60, "accept": 3600},
    }


async def test_a_rate_of_each_key(queue: Queue):
    """A message without the key's field, or with an empty one, has no key; the value stands in no name of a key."""
    meta = await limited(queue, key="user_id", accept_per_key=Rate(1, per=HOUR))
    messages = [*of("u1", "a", "b"), *of("u2", "c"), new("d"), new("e"), *of("", "f")]
    assert refused(await sent(queue, messages)) == ["", "accept_per_key", "", "", "", ""]
    table = await queue.table()
    assert {name: value for name, value in table.items() if name.startswith("accept")} == {
        "accept:u1": "now+3600",
        "accept:u2": "now+3600",
    }
    assert table["ttl"] == {"accept:u1": 3600, "accept:u2": 3600}
    assert table["stats"] == {"total_messages": 5, "refused_accept_per_key": 1}
    assert table["meta"] == meta
    assert table["queue:main"] == ["a", "c", "d", "e", "f"]


async def test_a_bucket_is_evenly_refilled(queue: Queue):
    await limited(queue, accept=Rate(4, per=HOUR))
    assert refused(await queue.offer("a", "b", "c", "d", "e")) == ["", "", "", "", "accept"]
    await _let_pass(queue, HOUR / 2)
    assert refused(await queue.offer("e", "f", "g")) == ["", "", "accept"]
    await _let_pass(queue, HOUR)
    assert refused(await queue.offer(*"hijkl")) == ["", "", "", "", "accept"]


async def _let_pass(queue: Queue, seconds: float) -> None:
    full_at = float(await queue.redis.get(queue.keys.accepts))
    await queue.redis.set(queue.keys.accepts, full_at - seconds, keepttl=True)


async def test_after_the_wait_that_was_answered_there_is_room(queue: Queue):
    await limited(queue, accept=Rate(1, per=0.05))
    await queue.enqueue("a")
    for n in range(20):
        (answer,) = await queue.offer(f"m{n}")
        if isinstance(answer, Refused):
            assert answer.retry_after is not None
            start = await queue.now()
            while await queue.now() < start + answer.retry_after:
                pass
            assert refused(await queue.offer(f"m{n}")) == [""]


@pytest.mark.parametrize("count", [7, 13, 14, 17])
async def test_many_small_steps_add_up_to_the_burst(queue: Queue, count):
    """So many times an hour's part is a little more than an hour in binary: the last one is accepted all the same."""
    await limited(queue, accept=Rate(count, per=HOUR))
    ids = [f"m{n}" for n in range(count + 1)]
    assert refused(await queue.offer(*ids)) == [*[""] * count, "accept"]


# ---- both, and what costs nothing


async def test_what_one_limit_refuses_costs_nothing_of_the_others(queue: Queue):
    await limited(
        queue, key="user_id", max_length=3, accept=Rate(100, per=100 * HOUR), accept_per_key=Rate(2, per=2 * HOUR)
    )
    first = await sent(queue, [*of("u1", "a", "b", "c", "d"), *of("u2", "e", "f", "g")])
    assert refused(first) == ["", "", "accept_per_key", "accept_per_key", "", "max_length", "max_length"]
    table = await queue.table()
    assert (table["accept"], table["accept:u1"], table["accept:u2"]) == ("now+10800", "now+7200", "now+3600")


async def test_of_two_rates_the_longer_wait_is_answered(queue: Queue):
    await limited(queue, key="user_id", accept=Rate(1, per=10), accept_per_key=Rate(1, per=HOUR))
    await sent(queue, of("u1", "a"))
    answers = await sent(queue, [*of("u1", "b"), *of("u2", "c")])
    assert refused(answers) == ["accept_per_key", "accept"]
    waits = [answer.retry_after for answer in answers if isinstance(answer, Refused)]
    assert waits == [pytest.approx(HOUR, abs=5), pytest.approx(10, abs=5)]


async def test_the_longer_wait_may_be_that_of_the_queue(queue: Queue):
    await limited(queue, key="user_id", accept=Rate(1, per=HOUR), accept_per_key=Rate(1, per=10))
    assert refused(await sent(queue, of("u1", "a", "b"))) == ["", "accept"]


async def test_a_duplicate_is_never_refused_and_costs_nothing(queue: Queue):
    """An id in line, a slot that is held, an end that is remembered, a dead letter: they are answered as ever."""
    await queue.complete(await queue.processing("done"))
    await queue.dead("dead")
    await limited(queue, max_length=2, accept=Rate(2, per=HOUR))
    await queue.enqueue("a", unique="k")
    await queue.enqueue("b")
    before = await queue.table()
    again = [*await queue.enqueue("a", "b", "done", "dead"), *await queue.enqueue("c", unique="k")]
    assert [answer.duplicate for answer in again] == [True] * 5
    after = await queue.table()
    assert after | {"stats": None} == before | {"stats": None}


async def test_a_reply_that_was_lost_is_not_charged_twice(queue: Queue):
    await limited(queue, key="user_id", accept=Rate(3, per=HOUR), accept_per_key=Rate(3, per=HOUR))
    messages = of("u1", "a", "b")
    await sent(queue, messages)
    before = await queue.table()
    assert refused(await sent(queue, messages)) == ["", ""]
    after = await queue.table()
    assert (after["accept"], after["accept:u1"]) == (before["accept"], before["accept:u1"]) == ("now+2400", "now+2400")


async def test_an_id_twice_in_a_call_is_charged_once(queue: Queue):
    await limited(queue, accept=Rate(2, per=HOUR))
    assert refused(await queue.offer("a", "a", "b", "c")) == ["", "", "", "accept"]


async def test_one_that_is_refused_fails_none_of_its_neighbours(queue: Queue):
    """They may come from callers who know nothing of each other and share a round trip."""
    await limited(queue, key="user_id", accept_per_key=Rate(1, per=HOUR))
    messages = [*of("u1", "a", "b"), *of("u2", "c"), *of("u1", "d"), *of("u2", "e")]
    assert refused(await sent(queue, messages)) == ["", "accept_per_key", "", "accept_per_key", "accept_per_key"]


async def test_in_order_nothing_is_taken_after_the_first_that_is_refused(queue: Queue):
    await limited(queue, key="user_id", accept_per_key=Rate(1, per=HOUR))
    messages = [*of("u1", "a", "b"), *of("u2", "c")]
    assert refused(await sent(queue, messages, in_order=True)) == ["", "accept_per_key", "accept_per_key"]
    table = await queue.table()
    assert (table["queue:main"], table["stats"]) == (["a"], {"total_messages": 1, "refused_accept_per_key": 1})


async def test_in_order_no_further_call_is_made(queue: Queue):
    await limited(queue, max_length=400)
    answers = await sent(queue, [new(f"m{n}") for n in range(1200)], in_order=True)
    assert refused(answers) == [*[""] * 400, *["max_length"] * 800]
    assert (await queue.table())["stats"] == {"total_messages": 400, "refused_max_length": 1}
    await queue.transitions.remove([f"m{n}" for n in range(200)])
    assert await queue.redis.zcard(queue.keys.main) == 200


# ---- changed, damaged, out of memory


async def test_limits_change_from_one_call_to_the_next(queue: Queue):
    await limited(queue, accept=Rate(1, per=HOUR))
    assert refused(await queue.offer("a", "b")) == ["", "accept"]
    await limited(queue)
    assert refused(await queue.offer("b")) == [""]
    await limited(queue, accept=Rate(1, per=60))
    (answer,) = await queue.offer("c")
    assert isinstance(answer, Refused)
    assert answer.retry_after == pytest.approx(60, abs=5), "not the hour that the bucket of before still had to go"


async def test_keys_of_another_field_have_buckets_of_their_own(queue: Queue):
    await limited(queue, key="user_id", accept_per_key=Rate(1, per=HOUR))
    assert refused(await sent(queue, [new("a", user_id="7", chat_id="7"), new("b", user_id="7")])) == [
        "", "accept_per_key",
    ]  # fmt: skip
    await limited(queue, key="chat_id", accept_per_key=Rate(1, per=HOUR))
    assert refused(await sent(queue, [new("c", user_id="7", chat_id="7")])) == [""]


@pytest.mark.parametrize(
    "field, value",
    [
        ("limit_accept", "many"), ("limit_accept", "0/1.0"), ("limit_accept", "1/0"), ("limit_accept", "1/1e300"),
        ("limit_max_length", "few"), ("limit_max_length", "0"), ("limit_max_length", "-1"),
        ("limit_accept_per_key", "1/3600.0"),
    ],
)  # fmt: skip
async def test_what_is_no_limit_limits_nothing(queue: Queue, field, value):
    await queue.redis.hset(queue.keys.meta, field, value)
    assert refused(await sent(queue, of("u1", "a", "b"))) == ["", ""]


@pytest.mark.parametrize("damage", ["text", "nan", "inf", "-inf", "list"])
async def test_a_bucket_that_somebody_wrote_over_is_mended(queue: Queue, damage):
    await limited(queue, accept=Rate(2, per=HOUR))
    if damage == "list":
        await queue.redis.rpush(queue.keys.accepts, "item")
        await queue.redis.expire(queue.keys.accepts, 60)
    else:
        await queue.redis.set(queue.keys.accepts, damage, ex=60)
    answers = await queue.offer("a", "b", "c")
    assert refused(answers) == (["accept"] * 3 if damage == "inf" else ["", "", "accept"])
    assert all(answer.retry_after == HOUR / 2 for answer in answers if isinstance(answer, Refused))


async def test_at_maxmemory_a_call_is_refused_whole_and_costs_nothing(small: Queue):
    await limited(small, accept=Rate(10, per=HOUR))
    await small.enqueue("first")
    before = await small.table()
    await small.fill()
    with pytest.raises(QueueUnavailable, match="maxmemory"):
        await small.enqueue("a", "b")
    await small.empty()
    assert await small.table() == before


# ---- ids whose message has ended, for callers who know them no longer


async def ended(queue: Queue) -> None:
    await queue.dead("dead", ttl=60)
    await queue.complete(await queue.processing("done"))


async def test_anew_a_message_takes_the_place_of_one_that_has_ended(queue: Queue):
    await ended(queue)
    answers = await queue.transitions.enqueue([new("dead"), new("done")], dedup_expiry=DEDUP_EXPIRY, anew=True)
    assert answers == [("dead", "queued", False), ("done", "queued", False)]
    assert await queue.table() == {
        "queue:main": ["dead", "done"],
        "stream": {"dead": NEVER, "done": NEVER},
        "msg:dead": body("dead", "queued"),
        "msg:done": body("done", "queued"),
        "stats": {
            "total_messages": 4, "completed_messages": 1, "dlq_messages": 1, "dead_rejected": 1, "removed_messages": 1,
        },
        "meta": META,
    }  # fmt: skip


async def test_anew_what_is_refused_leaves_a_dead_letter_where_it_is(queue: Queue):
    await ended(queue)
    await queue.enqueue("a")
    await limited(queue, max_length=1)
    before = await queue.table()
    answers = await queue.transitions.enqueue([new("dead"), new("done")], dedup_expiry=DEDUP_EXPIRY, anew=True)
    assert refused(answers) == ["max_length", "max_length"]
    assert await queue.table() == {**before, "stats": {**before["stats"], "refused_max_length": 2}}


async def test_anew_an_unfinished_message_is_not_doubled(queue: Queue):
    await queue.retrying("retry")
    batch = [new("retry"), new("a"), new("a")]
    answers = await queue.transitions.enqueue(batch, dedup_expiry=DEDUP_EXPIRY, anew=True)
    assert [answer.duplicate for answer in answers if isinstance(answer, Enqueued)] == [True, False, True]
