"""The preflight: reasons not to go on, found before anything is written."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import servers
import setups
from compat.old_programs import OldProducer, OldWorker
from helpers import Held, running, until, worker_of
from migrations.old_state import OldState
from migrations.pictures import exact
from migrations.steps import move, move_clean, silent, work_off
from streams_queue import Queue
from streams_queue.errors import MigrationError
from streams_queue_migrations import Finding, apply, discover, plan


async def findings(queue: Queue[Any], watch: float = 0.0) -> dict[str, Finding]:
    return {finding.name: finding for finding in (await plan(queue, silent, watch=watch)).findings}


@pytest.fixture
def small_server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[servers.Server]:
    name = setups.kind_asked_for(request.config)
    if name not in servers._BINARIES:
        pytest.skip(f"{name} has no server of one's own")
    server = servers.start(name, tmp_path)
    yield server
    server.stop()


@pytest.fixture
async def small(small_server: servers.Server) -> AsyncIterator[Queue[Any]]:
    """A queue on a server of its own."""
    async with Queue("small", url=small_server.url) as queue:
        yield queue


async def test_nothing_to_say_about_a_quiet_queue(queue: Queue[Any], state: OldState):
    state.queued("a")
    state.left_in_work("b", locked=True)
    state.place("main", "without a body", 1.0)
    state.flush()
    assert await findings(queue, watch=0.05) == {}


async def test_sets_of_another_program_are_left_alone_unless_forced(queue: Queue[Any], client: Any, state: OldState):
    client.zadd(queue.keys.dlq, {"theirs": 1})
    before = exact(client)
    with pytest.raises(MigrationError, match=r"no id has a body, theirs for one.*another program's"):
        await move(queue)
    assert exact(client) == before
    state.count("total_messages")
    state.flush()
    assert await findings(queue) == {}, "a queue whose bodies have all run out"
    client.delete(queue.keys.stats)
    state.body("theirs")
    state._pipeline.execute()
    assert await findings(queue) == {}, "a queue whose counters were deleted"
    client.delete(queue.keys.message("theirs"))
    assert (await move_clean(queue, force=True)).set_aside == {"dlq": 1}


async def test_a_server_that_evicts_is_refused_unless_forced(small: Queue[Any], small_server: servers.Server):
    with small_server.sync_client(decode_responses=False) as client:
        state = OldState(client, "small")
        state.queued("a")
        state.flush()
        client.config_set("maxmemory-policy", "allkeys-lru")
        assert await findings(small) == {}, "without maxmemory it never evicts"
        client.config_set("maxmemory", "500mb")
        before = exact(client)
        with pytest.raises(MigrationError, match=r"maxmemory-policy is allkeys-lru.*CONFIG SET maxmemory-policy"):
            await move(small)
        assert exact(client) == before
        client.config_set("maxmemory-policy", "noeviction")
        assert await findings(small) == {}
        client.config_set("maxmemory-policy", "volatile-ttl")
        await move_clean(small, force=True)


async def test_too_little_memory_is_refused_unless_forced(small: Queue[Any], small_server: servers.Server):
    with small_server.sync_client(decode_responses=False) as client:
        state = OldState(client, "small")
        for n in range(2000):
            state.queued(f"m{n}", 1e9 + n)
        state.flush()
        free = 100_000  # of the 300,000 bytes that the move asks for
        client.config_set("maxmemory", client.info("memory")["used_memory"] + free)
        with pytest.raises(MigrationError, match="MiB more are needed"):
            await move(small)
        assert not client.exists("small:meta", "small:stream")
        client.config_set("maxmemory", "1gb")
        assert await findings(small) == {}
        await move_clean(small)
        client.config_set("maxmemory", client.info("memory")["used_memory"] + free)
        assert not (await move_clean(small)).changed, "what is moved needs no more"


async def test_memory_that_runs_out_on_the_way_leaves_a_queue_that_the_next_run_moves(
    small: Queue[Any], small_server: servers.Server
):
    with small_server.sync_client(decode_responses=False) as client:
        state = OldState(client, "small")
        for n in range(3000):
            state.queued(f"m{n}", 1e9 + n)
        state.flush()
        # Some pages' worth: what a client's buffers take is counted too, so the exact place does not matter.
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 150_000)
        with pytest.raises(Exception, match=r"OOM|memory"):
            await move(small, force=True)
        client.config_set("maxmemory", "0")
        assert client.zcard("small:queue:main") == 3000
        await move_clean(small)
        assert [fields[b"id"] for _, fields in client.xrange("small:stream")] == state.main


async def test_the_lock_of_an_old_chat_worker_is_refused_unless_forced(queue: Queue[Any], redis: Any, state: OldState):
    state.queued("a")
    state.lock("global_lock", "processor")
    state.flush()
    with pytest.raises(MigrationError, match=r"global_lock is held by 'processor'.*stop them all"):
        await move(queue)
    assert not await redis.exists(queue.keys.meta)
    await move_clean(queue, force=True)


async def test_the_lock_of_our_own_chat_workers_is_none(queue: Queue[Any], redis: Any):
    await redis.set(queue.keys.global_lock, "streams-queue", ex=30)
    assert await findings(queue) == {}


async def test_messages_that_an_old_worker_takes_are_noticed(queue: Queue[Any], redis: Any, prefix: str):
    producer, worker = OldProducer(redis, prefix), OldWorker(redis, prefix)
    for n in range(3):
        await producer.enqueue({"request_id": f"a{n}"})

    async def finish_one() -> None:
        await asyncio.sleep(0.1)
        await worker.work()

    _, refused = await asyncio.gather(finish_one(), findings(queue, watch=0.4))
    assert refused["old_worker"].refuses and "a0 for one" in refused["old_worker"].what

    async def fail_one() -> None:
        await asyncio.sleep(0.1)
        await worker.work(fails=True)

    _, refused = await asyncio.gather(fail_one(), findings(queue, watch=0.4))
    assert refused["old_worker"].refuses and "a1 for one" in refused["old_worker"].what

    async def begin_one() -> None:
        await asyncio.sleep(0.1)
        await redis.hset(queue.keys.message("a2"), "status", "processing")

    _, refused = await asyncio.gather(begin_one(), findings(queue, watch=0.4))
    assert refused["old_worker"].refuses and "a2 for one" in refused["old_worker"].what
    assert await findings(queue, watch=0.1) == {}, "it stands still: left behind by a worker that died"

    async def finish_what_was_begun() -> None:
        await asyncio.sleep(0.1)
        await worker.work()

    before = await redis.keys(f"{prefix}:*")
    with pytest.raises(MigrationError, match="worker of the old code, a2 for one"):
        await asyncio.gather(finish_what_was_begun(), apply(queue, silent, silent, watch=0.4))
    assert set(await redis.keys(f"{prefix}:*")) < set(before)


async def _after(seconds: float, does: Any) -> None:
    await asyncio.sleep(seconds)
    await does


async def test_a_body_that_runs_out_meanwhile_is_no_worker(queue: Queue[Any], redis: Any, state: OldState):
    state.queued("a")
    state.flush()
    _, found = await asyncio.gather(_after(0.05, redis.delete(queue.keys.message("a"))), findings(queue, watch=0.2))
    assert found == {}


async def test_workers_of_this_engine_are_told_and_do_no_harm(queue: Queue[Any], state: OldState):
    held = Held()
    async with running(worker_of(queue, held.handle, concurrency=1, lease=30.0)):
        first = await queue.enqueue({}, id="first")
        await held.holds(1)
        state.queued("older", time.time() - 50)
        state.flush()
        found = await findings(queue, watch=0.1)
        assert not found["new_workers"].refuses and set(found) == {"new_workers"}
        await move_clean(queue)
        held.go.set()
        await queue.result(first.id, timeout=10)
        await until(lambda: len(held.finished) == 2)
    assert held.finished == ["first", "older"]
    assert await findings(queue) == {}, "a worker that left is none"


async def test_a_finished_message_of_the_engine_is_no_sign_of_old_workers(queue: Queue[Any]):
    for n in range(5):
        await queue.enqueue({}, id=f"m{n}")

    async def work() -> None:
        await asyncio.sleep(0.1)
        assert len(await work_off(queue)) == 5

    _, found = await asyncio.gather(work(), findings(queue, watch=1.0))
    assert "old_worker" not in found


async def test_discover_finds_every_old_queue(queue: Queue[Any], client: Any):
    for prefix, name in {"b": "main", "a:b": "dlq", "{c}": "retry", "d": "scheduled", "e\n f": "main"}.items():
        client.zadd(f"{prefix}:queue:{name}", {"x": 1})
        client.expire(f"{prefix}:queue:{name}", 100)
    client.set("no:queue:mainly", "x", ex=100)
    client.set("queue:main", "x", ex=100)
    assert await discover(queue.connection) == ["a:b", "b", "d", "e\n f", "{c}"]
