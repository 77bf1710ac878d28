"""An answer that a blocked event loop reads late: what it brings may be another worker's by then."""

from __future__ import annotations

import time

import pytest

from helpers import LEASE, queue_at, until
from streams_queue.claiming import Claimer
from streams_queue.slots import Slots


@pytest.mark.parametrize("by", ["claim", "adopt"])
async def test_what_was_lost_meanwhile_is_not_run(server, prefix, redis, by):
    async with queue_at(server, prefix) as queue, queue_at(server, prefix) as other:
        (lost, kept) = [receipt.id for receipt in await queue.enqueue_many([{}, {}])]
        for consumer in ("slow", "quick"):
            await queue.transitions.join(consumer, LEASE)
        claimer = Claimer(queue.connection, queue.transitions, "slow", LEASE, 0.1, answered=lambda: None)
        slots = Slots(2)
        answer = getattr(queue.transitions, by)

        async def late(*args, **options):
            claimed = await answer(*args, **options)
            await redis.delete(queue.keys.lock(lost))  # as if its lease had run out
            await until(lambda: other.transitions.sweep(max_deliveries=3, dead_letter_ttl=60))
            assert [delivery.lease.id for delivery in (await other.transitions.claim("quick", 1)).deliveries] == [lost]
            time.sleep(LEASE / 2)  # noqa: ASYNC251  (a handler that blocks the loop)
            return claimed

        setattr(queue.transitions, by, late)
        if by == "claim":
            claimed = await claimer.claim(await slots.room(claimer), ())
        else:
            await redis.xreadgroup("workers", "slow", {queue.keys.streams["n"]: ">"})
            claimed = await claimer._adopt_unseen(slots.no_room(claimer), ())
        assert [delivery.lease.id for delivery in claimed.deliveries] == [kept]
