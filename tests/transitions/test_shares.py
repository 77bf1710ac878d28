"""claim's shares: high first, and what is lower gets its share of the slots; `ahead` says what comes of it."""

from __future__ import annotations

import random
from importlib.resources import files

import pytest

from streams_queue.limits import LOW_SHARE, NORMAL_SHARE
from streams_queue.model import PRIORITIES
from transitions.tables import META, Queue

AGREEMENTS: list[dict[str, float]] = [
    {}, {}, {"normal": 0.5, "low": 0.3}, {"normal": 0, "low": 0.1}, {"normal": 0.33, "low": 0}
]  # fmt: skip


async def agree(queue: Queue, **shares: float) -> None:
    for line, share in shares.items():
        await queue.redis.hset(queue.keys.meta, f"limit_{line}_share", share)


async def fill(queue: Queue, **counts: int) -> None:
    for priority in PRIORITIES.values():
        ids = [f"{priority}{n}" for n in range(counts.get(priority, 0))]
        if ids:
            await queue.enqueue(*ids, priority=priority)


async def drained(queue: Queue, count: int, at_once: int = 1) -> str:
    """The first letters of what the next claims are given, in their order."""
    lines = ""
    while len(lines) < count:
        lines += "".join(lease.id[0] for lease in await queue.claim(count=min(at_once, count - len(lines))))
    return lines


async def credits(queue: Queue) -> list[str | None]:
    found: list[str | None] = await queue.redis.hmget(queue.keys.meta, "credit_normal", "credit_low")
    return found


async def test_a_handful_comes_out_strictly_the_highest_first(queue: Queue):
    await fill(queue, low=3, normal=3, high=3)
    assert await drained(queue, 9) == "hhhnnnlll"


async def test_a_lower_line_is_paid_in_whole_slots(queue: Queue):
    await fill(queue, normal=100, high=100)
    assert await drained(queue, 12) == "hhhhnhhhhnhh"


async def test_every_line_gets_its_share(queue: Queue):
    """Where two are due at once, the lowest is first: so at the 401st slot, not at the 400th, all is paid."""
    await fill(queue, low=60, normal=120, high=500)
    taken = await drained(queue, 401)
    assert [taken.count(letter) for letter in "hnl"] == [301, 80, 20]
    assert taken[399:] == "ln"


@pytest.mark.parametrize("at_once", [2, 7, 33, 100])
async def test_it_makes_no_difference_how_many_are_claimed_at_once(queue: Queue, at_once):
    await fill(queue, low=60, normal=120, high=500)
    taken = await drained(queue, 401, at_once)
    assert [taken.count(letter) for letter in "hnl"] == [301, 80, 20]


async def test_the_shares_are_those_that_were_agreed(queue: Queue):
    await agree(queue, normal=0.5, low=0.25)
    await fill(queue, low=100, normal=100, high=100)
    taken = await drained(queue, 101)
    assert [taken.count(letter) for letter in "hnl"] == [26, 50, 25]


async def test_a_share_of_zero_is_strict(queue: Queue):
    await agree(queue, normal=0, low=0)
    await fill(queue, low=50, normal=50, high=50)
    assert await drained(queue, 150) == "h" * 50 + "n" * 50 + "l" * 50
    assert await credits(queue) == [None, None]


@pytest.mark.parametrize("text", ["much", "-1e99", "nan", "inf", ""])
async def test_what_is_no_share_or_no_credit_is_passed_over(queue: Queue, text):
    await queue.redis.hset(queue.keys.meta, mapping={"limit_normal_share": text, "credit_normal": text})
    await fill(queue, normal=100, high=100)
    assert await drained(queue, 12) == "hhhhnhhhhnhh"


async def test_without_contention_nothing_is_written(queue: Queue):
    await fill(queue, high=5)
    await queue.claim(count=5)
    await fill(queue, normal=5)
    await queue.claim(count=3)
    await fill(queue, low=5)
    await queue.claim(count=7)
    assert (await queue.table())["meta"] == META


async def test_a_credit_is_kept_from_claim_to_claim_and_lost_with_the_need_for_it(queue: Queue):
    await fill(queue, normal=5, high=3)
    await drained(queue, 3)
    assert await credits(queue) == ["600000", "0"]
    await fill(queue, low=2)
    await drained(queue, 1)
    assert await credits(queue) == ["0", "50000"], "nothing higher waits any more"


async def test_what_was_handed_back_is_shared_alike(queue: Queue):
    await fill(queue, low=20, normal=20, high=60)
    await queue.transitions.release("w1", await queue.claim(count=100))
    taken = await drained(queue, 61)
    assert [taken.count(letter) for letter in "hnl"] == [46, 12, 3]


async def test_what_is_in_flight_does_not_wait(queue: Queue):
    await queue.processing("low", priority="low")
    await fill(queue, high=100)
    assert await drained(queue, 40) == "h" * 40
    assert (await queue.table())["meta"] == META


async def test_only_what_was_handed_out_is_paid_for(queue: Queue):
    """The first normal ones were taken out by hand: their entries cost the line nothing."""
    await fill(queue, normal=50, high=50)
    await queue.redis.zrem(queue.keys.main, *[f"normal{n}" for n in range(10)])
    taken = await drained(queue, 50)
    assert taken.count("n") == 10


async def test_shares_that_leave_nothing_for_high_ones_are_passed_over(queue: Queue):
    await agree(queue, normal=0.6, low=0.4)
    await fill(queue, low=100, normal=100, high=100)
    assert await drained(queue, 12) == "hhhhnhhhhnhh"


async def test_the_defaults_are_those_of_the_limits(queue: Queue):
    """Two texts say them: the script's, and the class's."""
    shares = (files("streams_queue") / "lua" / "include" / "shares.lua").read_text()
    assert f"NORMAL, LOW = {NORMAL_SHARE}, {LOW_SHARE}" in shares


async def test_the_lines_are_counted(queue: Queue):
    await fill(queue, low=2, normal=3, high=4)
    await queue.claim(count=2)
    stats = await queue.transitions.stats()
    assert (stats.main, stats.high, stats.low) == (9, 4, 2)


# ---- ahead


async def told_and_true(queue: Queue) -> tuple[dict[str, int | None], dict[str, int]]:
    """What `ahead` says of all that waits, and how many were really taken before each, one at a time."""
    waiting = await queue.redis.zrange(queue.keys.main, 0, -1)
    told = {id: ahead for id, (_, ahead) in zip(waiting, await queue.transitions.positions(waiting), strict=True)}
    true: dict[str, int] = {}
    while leases := await queue.claim():
        true |= {lease.id: len(true) for lease in leases}
    return told, true


@pytest.mark.parametrize("seed", range(20))
async def test_ahead_is_what_will_be_taken_before(queue: Queue, seed):
    chance = random.Random(seed)
    await agree(queue, **chance.choice(AGREEMENTS))
    weights = [chance.random() for _ in PRIORITIES]
    for n in range(chance.randrange(60, 250)):
        (priority,) = chance.choices(list(PRIORITIES.values()), weights)
        await queue.enqueue(f"{priority}{n}", priority=priority)
    for _ in range(chance.randrange(50)):
        await queue.claim()  # so that credits are what they may be
    told, true = await told_and_true(queue)
    errors = {id: (told[id] or 0) - before for id, before in true.items()}
    assert all(abs(error) <= 1 for error in errors.values()), errors
