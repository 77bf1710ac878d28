"""`streams-queue bench`: it measures, it asks first, and it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal

import pytest

from servers import free_port

NAMES = {
    "messages", "payload_bytes", "concurrency", "enqueue_many_per_second", "enqueue_per_second", "finished_per_second",
    "server_cpu", "round_trip", "reaction", "reaction_round_trips",
}  # fmt: skip


@pytest.fixture
async def kept(redis):
    """Another program's key on the same server."""
    await redis.set("others", "1", ex=600)
    yield
    assert await redis.keys() == ["others"]


async def test_figures(run, kept):
    code, out, err = run(
        "bench", "--messages", "300", "--concurrency", "20", "--payload-bytes", "10", "--json", "--yes"
    )
    assert code == 0, err
    found = json.loads(out)
    assert set(found) == NAMES
    assert (found["messages"], found["concurrency"], found["payload_bytes"]) == (300, 20, 10)
    assert all(found[name] > 0 for name in NAMES)
    assert err.startswith("this will put 300 messages of 10 bytes under {streams-queue-bench-")
    assert ":***@" not in err


async def test_for_people(run, kept):
    code, out, _ = run("bench", "--messages", "100", "--yes")
    assert code == 0
    assert [line[:19].strip() for line in out.splitlines()] == [
        "server", "messages", "enqueue_many", "enqueue, 32 callers", "finished", "server meanwhile", "round trip",
        "enqueue to handler",
    ]  # fmt: skip


async def test_where_nobody_can_be_asked_nothing_is_written(run, kept, redis):
    before = (await redis.info("commandstats")).get("cmdstat_evalsha", {}).get("calls", 0)
    code, out, err = run("bench")
    assert (code, out) == (2, "")
    assert "add --yes" in err
    assert (await redis.info("commandstats")).get("cmdstat_evalsha", {}).get("calls", 0) == before


@pytest.mark.parametrize("during", ["enqueue, 32 callers", "enqueue_many", "finish"])
async def test_ctrl_c_leaves_nothing(terminal, kept, during):
    command = terminal("bench", "--messages", "20000", "--yes")
    command.wait_for(during)
    command.press("\x03")
    ended = command.end()
    assert ended.code == 1, ended.out
    assert "interrupted; what it had written is removed" in ended.out


async def test_a_supervisor_ends_it_likewise(start, kept, redis):
    process = start("bench", "--messages", "1000000", "--yes")
    while not await redis.exists("others") or await redis.dbsize() < 1000:
        assert process.poll() is None
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "interrupted" in err


async def test_embedded_needs_no_question(run):
    assert run("bench", "--url", "embedded://", "--messages", "100", "--json").json["messages"] == 100


async def test_no_server(run):
    code, out, err = run("bench", "--yes", "--url", f"redis://:secret@127.0.0.1:{free_port()}")
    assert (code, out) == (3, "")
    assert "error: redis://:***@127.0.0.1" in err
    assert "secret" not in err
