"""Two migrations of one queue: the second is told of the first, and one that was killed holds up nobody for long."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import pytest

from migrations.old_state import OldState
from migrations.steps import Moving, move, move_back, move_clean, silent
from streams_queue import Queue
from streams_queue.errors import MigrationError
from streams_queue_migrations import apply, applying, marking, verifying


@pytest.fixture
def two(state: OldState) -> OldState:
    for n in range(2):
        state.queued(f"m{n}", time.time() - 10 + n)
    state.flush()
    return state


async def marks(client: Any, queue: Queue[Any]) -> Any:
    return client.hmget(queue.keys.meta, "migration_owner", "migration_until")


async def test_a_second_one_is_refused_and_told_whose_the_first_is(
    queue: Queue[Any], client: Any, two: OldState, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(marking, "LASTS", 0.3)
    at_work, goes_on = asyncio.Event(), asyncio.Event()

    async def held(*args: Any, **options: Any) -> Any:
        at_work.set()
        await goes_on.wait()
        return await verifying.look_twice(*args, **options)

    monkeypatch.setattr(applying, "look_twice", held)
    first = asyncio.create_task(apply(queue, silent, silent, watch=0))
    await at_work.wait()
    for other in (move, move_back):
        with pytest.raises(MigrationError, match=rf"moved in or rolled back by \S+-{os.getpid()}-\w+ .*--force"):
            await other(queue)
    assert client.xlen(queue.keys.streams["n"]) == 2, "nothing was rolled back"
    goes_on.set()
    assert (await first).verified.clean
    assert await marks(client, queue) == [None, None]


async def test_force_goes_on_beside_it(queue: Queue[Any], moving: Moving, two: OldState):
    await moving.door.mark("another", 60, "take")
    assert (await move_clean(queue, force=True)).entered == 2
    await moving.door.mark("another", 60, "take")
    await move_back(queue, force=True)


async def test_one_that_was_killed_is_waited_for(
    queue: Queue[Any], client: Any, moving: Moving, two: OldState, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(marking, "LASTS", 0.5)
    await moving.door.mark("killed", marking.LASTS, "take")
    began = time.monotonic()
    assert (await move_clean(queue)).entered == 2
    assert 0.4 < time.monotonic() - began < 5
    assert await marks(client, queue) == [None, None]


async def test_a_mark_is_its_owners(moving: Moving):
    assert (await moving.door.mark("a", 60, "take"))[0] == "a"
    for action in ("take", "renew", "free"):
        assert (await moving.door.mark("b", 60, action))[0] == "a"
    assert (await moving.door.mark("b", 60, "force"))[0] == "b"
    assert (await moving.door.mark("a", 60, "renew"))[0] == "b", "it does not take it back"
    assert await moving.door.mark("b", 60, "free") == ("", "")
    assert await moving.door.mark("b", 60, "renew") == ("", ""), "what is gone, with the queue's own keys, stays gone"
