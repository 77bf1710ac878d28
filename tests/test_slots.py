"""Slots that several queues' claims share: none is filled twice, nobody starves, and a suspect runs alone."""

from __future__ import annotations

import asyncio

from helpers import until
from streams_queue.slots import Slots


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_one_claim_has_reserved_another_does_not_get():
    slots = Slots(3)
    with await slots.room("a") as first:
        assert (first.free, slots.full) == (3, True)
        second = asyncio.create_task(slots.room("b"))
        await settled()
        assert not second.done()
        first.fill(1)
    assert (await second).free == 2
    assert slots.running == 1


async def test_what_is_not_filled_goes_back():
    slots = Slots(3)
    with await slots.room("a") as room:
        room.fill(2)
    with await slots.room("a") as room:
        assert room.free == 1
    slots.leave()
    slots.leave()
    with await slots.room("a") as room:
        assert room.free == 3


async def test_who_waits_comes_in_turn_and_gets_an_even_part():
    slots = Slots(8)
    order: list[tuple[str, int]] = []

    async def wait(member: str) -> None:
        with await slots.room(member) as room:
            order.append((member, room.free))
            room.fill(room.free)

    with await slots.room("busy") as room:
        room.fill(8)
    waiting = [asyncio.create_task(wait(member)) for member in ("busy", "b", "c", "d")]
    await settled()
    for _ in range(8):
        slots.leave()
    await asyncio.gather(*waiting)
    assert order == [("busy", 2), ("b", 2), ("c", 2), ("d", 2)]


async def test_who_only_waits_for_messages_takes_no_more_than_is_free():
    slots = Slots(2)
    with await slots.room("a") as room:
        room.fill(1)
    with slots.no_room("b") as room:
        assert room.free == 0
        room.take(3)
        assert room.free == 1
    with await slots.room("a") as room:
        assert room.free == 1


async def test_what_waits_for_a_server_that_is_away_reserves_nothing():
    slots = Slots(2)
    with await slots.room("away") as room:
        room.give_back()
        with await slots.room("b") as other:
            assert other.free == 2


async def test_alone_means_that_nothing_runs_and_nobody_else_gets_room():
    slots = Slots(4)
    with await slots.room("a") as room:
        room.fill(1)
    alone = asyncio.create_task(slots.room("b", alone=True))
    await settled()
    other = asyncio.create_task(slots.room("c"))
    with slots.no_room("d") as idle:
        idle.take(1)
        assert idle.free == 0
    await settled()
    assert not alone.done()
    slots.leave()
    with await alone as room:
        assert room.alone
        room.fill(1)
        room.stays_alone = True
    await settled()
    assert not other.done()
    slots.leave()
    with await slots.room("b", alone=True):
        assert not other.done()
    assert (await other).free == 4


async def test_who_is_cancelled_while_it_waits_to_be_alone_holds_up_nobody():
    slots = Slots(1)
    with await slots.room("a") as room:
        room.fill(1)
    alone = asyncio.create_task(slots.room("b", alone=True))
    await settled()
    alone.cancel()
    await asyncio.wait([alone])
    slots.leave()
    assert (await slots.room("a")).free == 1


async def test_one_member_that_finds_nothing_running_is_alone():
    slots = Slots(2)
    slots.join("a")
    with await slots.room("a") as room:
        assert room.alone
        room.fill(1)
    with await slots.room("a") as room:
        assert not room.alone
    slots.leave()
    slots.join("b")
    with await slots.room("a") as room:
        assert not room.alone


async def test_all_rest_or_none():
    slots = Slots(2)
    slots.join("a")
    slots.join("b")
    first = asyncio.create_task(slots.rest("a", 0))
    await settled()
    with await slots.room("b") as room:
        room.fill(1)
    await settled()
    assert not first.done()
    slots.leave()
    assert await first is False  # what ran may have enqueued something
    assert await slots.rest("a", 0) is False  # it has looked before
    rests = [asyncio.create_task(slots.rest(member, 1)) for member in ("a", "b")]
    assert await asyncio.gather(*rests) == [True, True]


async def test_more_slots_are_there_at_once():
    slots = Slots(1)
    with await slots.room("a") as room:
        room.fill(1)
    waiting = asyncio.create_task(slots.room("a"))
    await settled()
    slots.limit = 3
    await until(waiting.done)
    assert waiting.result().free == 2


class Lists:
    """An intake of ten messages a handler."""

    size = 10
    begun = 0


async def test_a_slot_has_room_for_a_whole_list():
    slots, lists = Slots(3), Lists()
    with await slots.room("a", intake=lists) as room:
        assert room.free == 30
        room.fill(1)
        lists.begun = 4
        assert room.free == 24
    with await slots.room("b") as room:
        assert room.free == 2


async def test_a_list_that_has_its_slot_waits_for_no_other():
    slots, lists = Slots(1), Lists()
    with await slots.room("a", intake=lists) as room:
        room.fill(1)
    lists.begun = 6
    assert slots.full
    with await slots.room("a", intake=lists) as room:
        assert room.free == 6
        lists.begun = 0  # it was handed over meanwhile
        assert room.free == 0
        room.take(3)
        assert room.free == 0
    slots.leave()
    with slots.no_room("a", intake=lists) as room:
        room.take(3)
        assert room.free == 10
    assert not slots.full


async def test_nothing_joins_a_list_while_another_is_to_be_alone():
    slots, lists = Slots(2), Lists()
    with await slots.room("a", intake=lists) as room:
        room.fill(1)
    lists.begun = 6
    alone = asyncio.create_task(slots.room("b", alone=True))
    await settled()
    joining = asyncio.create_task(slots.room("a", intake=lists))
    await settled()
    assert not joining.done()
    lists.begun = 0
    slots.leave()
    with await alone:
        pass
    assert (await joining).free == 20


async def test_what_is_freed_by_one_who_wants_to_be_alone_next_is_told():
    slots = Slots(2)
    with await slots.room("a") as room:
        other = asyncio.create_task(slots.room("b"))
        await settled()
        room.stays_alone = True
    alone = asyncio.create_task(slots.room("a", alone=True))
    with await asyncio.wait_for(other, 1):
        pass
    assert (await asyncio.wait_for(alone, 1)).alone
