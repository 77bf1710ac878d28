"""The central stories on a Redis Cluster of three primaries with replicas, and behind three Sentinels.

More of the suite runs there by ``--server cluster`` and ``--server sentinel``; failovers and moving slots are faults of
the chaos lab.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import setups
from compat.old_programs import OldProducer, requeue_dead_letter
from helpers import Handler, queue_at, running, until, work, worker_of
from streams_queue import ConfigurationError, HandlerFailed, Queue, QueueUnavailable, ShardedQueue, Status
from streams_queue_compat import chat_api_queue
from streams_queue_compat.redis_queue_manager import RedisQueueManager
from streams_queue_migrations import reshard

WORKER = Path(__file__).parent / "processes" / "worker.py"
REQUEST = ("hi there", "telegram", "s1", "12345:the-secret-of-the-bot", "c1", "private", "m1")


@pytest.fixture(scope="module", params=setups.NAMES)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    running = setups.start_any(request.param, tmp_path_factory.mktemp(request.param))
    yield running
    running.stop()


@pytest.fixture
def prefix(prefix: str) -> str:
    return f"{setups.HOME}{prefix.removeprefix(setups.HOME)}"


@pytest.fixture
async def queue(server, prefix) -> AsyncIterator[Queue[Any]]:
    async with queue_at(server, prefix) as queue:
        yield queue


@pytest.fixture
def workers(server, prefix, tmp_path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts worker processes."""
    with contextlib.ExitStack() as stack:

        def start() -> subprocess.Popen[bytes]:
            command = [sys.executable, str(WORKER), server.url, prefix, str(tmp_path / "ledger")]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            return process

        yield start


def fails(message: Any) -> None:
    raise ValueError("not today")


async def test_from_enqueue_to_result_across_processes(queue, workers):
    ids = [(await queue.enqueue({"n": n})).id for n in range(20)]
    assert [await queue.position(id) for id in ids[:3]] == [1, 2, 3]
    assert (await queue.enqueue({"n": 0}, id=ids[0])).duplicate
    processes = [workers(), workers()]
    done = [f"done by {process.pid}" for process in processes]
    assert {await queue.result(id, timeout=15) for id in ids} <= set(done)
    assert (await queue.stats()).main == 0


async def test_a_killed_worker(queue, workers, tmp_path):
    first = workers()
    id = (await queue.enqueue({"do": "wait once"})).id
    await until((tmp_path / "ledger").exists)
    first.kill()
    second = workers()
    assert await queue.result(id, timeout=15) == f"done by {second.pid}"


async def test_retries_the_dead_letter_and_its_return(queue, redis, prefix):
    id = (await queue.enqueue({"n": 1})).id
    failing = Handler(fails)
    await work(queue, failing.handle, max_retries=2)
    assert len(failing.messages) == 3
    with pytest.raises(HandlerFailed, match="not today"):
        await queue.result(id, timeout=1)
    assert await redis.zrange(f"{prefix}:queue:dlq", 0, -1) == [id]
    assert [letter.id for letter in await queue.dead_letters.list()] == [id]
    assert await queue.dead_letters.requeue(id)
    handler = Handler()
    await work(queue, handler.handle)
    assert handler.ids == [id]
    counters = (await queue.stats()).counters
    assert (counters["completed_messages"], counters["retry_count"], counters["dlq_messages"]) == (1, 2, 1)


async def test_pauses(queue):
    await queue.pause()
    handler = Handler()
    async with running(worker_of(queue, handler.handle)):
        id = (await queue.enqueue({"n": 1})).id
        await asyncio.sleep(0.5)  # time to take it
        assert handler.ids == []
        await queue.resume()
        await queue.result(id, timeout=10)


async def test_delays_priorities_slots_and_removals(queue):
    low = (await queue.enqueue({"n": "low"}, priority="low")).id
    high = (await queue.enqueue({"n": "high"}, priority="high", unique_key="k")).id
    again = await queue.enqueue({"n": "again"}, unique_key="k")
    assert (again.id, again.duplicate) == (high, True)
    gone = (await queue.enqueue({"n": "gone"})).id
    assert await queue.remove(gone)
    late = (await queue.enqueue({"n": "late"}, delay=1.0)).id
    assert (await queue.get(late)).status is Status.SCHEDULED
    handler = Handler()
    async with running(worker_of(queue, handler.handle, concurrency=1)):
        await queue.result(late, timeout=10)
    assert handler.ids == [high, low, late]


@pytest.mark.parametrize("after", [5, 2])
async def test_another_number_of_shards(server, prefix, after):
    name = prefix.removeprefix(setups.HOME)
    async with ShardedQueue(name, shards=3, key="user", url=server.url) as queue:
        receipts = await queue.enqueue_many([{"user": n} for n in range(60)])
        await queue.enqueue_many([{"user": n} for n in range(20)], delay=1000)
        done = await reshard(queue, after, lambda *_: None)
        assert (done.clean, done.before, done.after) == (True, 3, after)
        assert {"main", "scheduled"} == set(done.moved)
        assert [shard.elsewhere for shard in done.shards] == [0] * len(done.shards)
        handler = Handler()
        await work(queue, handler.handle)
        assert Counter(handler.ids) == Counter(receipt.id for receipt in receipts)
        stats = await queue.stats()
        assert (stats.main, stats.scheduled, stats.lost) == (0, 20, 0)


async def test_a_confirmation_of_the_replica(queue):
    assert not (await queue.enqueue({"n": 1}, replicas=1)).duplicate
    with pytest.raises(QueueUnavailable, match="of 2 replicas confirmed"):
        await queue.enqueue({"n": 2}, replicas=2)


async def test_an_old_producer_and_the_operators_script(queue, redis, prefix):
    old = OldProducer(redis, prefix)
    handler = Handler()
    async with running(worker_of(queue, handler.handle)):
        id = await old.enqueue({"script": "x", "digits": "123"})
        await until(lambda: handler.ids == [id], 5, "what the old producer wrote being found")
    assert handler.messages[0].data["digits"] == 123
    dead = (await queue.enqueue({"n": 1})).id
    await work(queue, Handler(fails).handle, max_retries=0)
    await requeue_dead_letter(redis, prefix, dead)
    async with running(worker_of(queue, handler.handle)):
        await until(lambda: handler.ids == [id, dead], 5, "what the script put in line being found")


# ---- the documented API, whose prefix is fixed


@pytest.fixture
async def chat(server, monkeypatch) -> AsyncIterator[chat_api_queue._Chat]:
    monkeypatch.setenv("STREAMS_QUEUE_URL", server.url)
    fresh = chat_api_queue._Chat()
    monkeypatch.setattr(chat_api_queue, "_chat", fresh)
    yield fresh
    await fresh.queue.close()


async def test_the_chat_queue(server, chat, redis):
    prefix = "{chat_api}" if server.name == "cluster" else "chat_api"
    heard: list[str] = []

    async def answer(request: Any) -> str:
        return f"{request.user_id} asked: {request.message}"

    async def hear(request: Any, status: str, response: Any, error: Any) -> None:
        heard.append(f"{status} {response}")

    chat_api_queue.configure(answer)
    id = await chat_api_queue.enqueue_chat_request("u1", *REQUEST, status_callback=hear)
    assert id is not None
    assert await chat_api_queue.get_queue_position(id) == 1
    assert await redis.zrange(f"{prefix}:queue:main", 0, -1) == [id]
    assert chat.queue.queue_main_key == f"{prefix}:queue:main"
    request = await chat_api_queue.get_user_request("u1")
    assert request is not None and request.request_id == id
    await chat_api_queue.start_queue_processor()
    await until(lambda: heard[-1:] == ["completed u1 asked: hi there"])
    assert await redis.get(f"{prefix}:lock:global_lock") == "streams-queue"
    await chat_api_queue.stop_queue_processor()
    assert heard == ["queued None", "processing None", "completed u1 asked: hi there"]


async def test_a_manager_by_hand(server, monkeypatch):
    monkeypatch.setenv("STREAMS_QUEUE_URL", server.url)
    manager = RedisQueueManager("script_exec")
    assert manager.prefix == ("{script_exec}" if server.name == "cluster" else "script_exec")
    assert await manager.enqueue({"request_id": "a"}) == "a"
    assert await manager.get_next_message() == "a"
    assert await manager.update_message("a", {"progress": "half"})
    message = await manager.get_message("a")
    assert message is not None and message["progress"] == "half"
    assert await manager.try_acquire_lock("a", "me")
    assert await manager.remove_message("a")
    assert await manager.get_next_message() is None
    assert (await manager.get_stats())["completed_messages"] == 1
    await manager.close()


def test_a_native_queue_says_which_prefix_it_needs(server):
    if server.name == "cluster":
        with pytest.raises(ConfigurationError, match=r"use '\{chat_api\}'"):
            Queue("chat_api", url=server.url)


# ---- operators say `chat_api`, wherever it is


def command(server: Any, *arguments: str, code: int = 0) -> Any:
    line = [sys.executable, "-c", "from streams_queue.cli import main; main()", *arguments, "--url", server.url]
    done = subprocess.run(line, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == code, done
    return json.loads(done.stdout)


async def test_commands_know_the_chat_queue_by_its_name(server, chat):
    id = await chat_api_queue.enqueue_chat_request("u1", *REQUEST)
    assert id is not None
    asked = asyncio.to_thread(command, server, "peek", "--prefix", "chat_api", "--json")
    assert [message["id"] for message in await asked] == [id]
    asked = asyncio.to_thread(command, server, "remove", id, "--prefix", "chat_api", "--yes", "--json")
    await asked
    assert await chat_api_queue.get_queue_length() == 0


async def test_doctor_warns_of_persistence_alone(server, chat):
    checks = await asyncio.to_thread(command, server, "doctor", "--prefix", "chat_api", "--json", code=4)
    assert [check for check in checks if check["verdict"] == "danger"] == []
    assert {check["queue"] for check in checks} >= {chat.queue.prefix}
