"""The command line shows a queue with shards as one."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cli.test_exporter import fetched
from helpers import work
from streams_queue import Limits, Rate, Reject, ShardedQueue
from streams_queue.settings import Settings


@pytest.fixture
def prefix(sharded_prefix: str) -> str:
    return sharded_prefix


@pytest.fixture
def redis(everywhere: Any) -> Any:
    return everywhere


@pytest.fixture
async def queue(server, prefix) -> AsyncIterator[ShardedQueue[Any]]:
    async with ShardedQueue(prefix, shards=4, url=server.url) as queue:
        yield queue


async def bury(queue: ShardedQueue[Any], count: int) -> list[str]:
    async def fail(message):
        raise Reject("no stock")

    died = []
    for n in range(count):
        died.append((await queue.enqueue({"user_id": f"u{n}", "n": n})).id)
        await work(queue.shards[queue.routing.holders(died[-1])[0] or 0], fail)
    return died


def of_shards(run) -> list[tuple[str, str, str]]:
    checks = json.loads(run("doctor", "--json").out)
    return [(row["verdict"], row["reason"], row["remedy"]) for row in checks if row["check"] == "shards"]


async def test_the_doctor_says_where_shards_disagree(run, queue, prefix):
    await queue.set_limits(Limits(max_length=400, work=Rate(7, per=0.3)))
    assert of_shards(run) == [("ok", "All 4 shards have their part of the limits, and none is paused.", "")]
    await queue.shards[1].set_limits(Limits(max_length=5))
    await queue.shards[2].pause()
    (_, of_limits, remedy), (_, of_pause, _) = of_shards(run)
    assert of_limits == f"{{{prefix}:1}} of 4 shards do not have their part of the queue's limits."
    assert of_pause == f"{{{prefix}:2}} of 4 shards are paused, and the others are not."
    assert run(*shlex.split(remedy.partition(",")[0])[1:]).code == 0
    await queue.resume()
    assert of_shards(run)[0][0] == "ok"


async def test_looking(run, queue):
    receipts = await queue.enqueue_many([{"user_id": f"u{n}"} for n in range(30)])
    assert run("stats", "--json").json["main"] == 30
    line = run("peek", "--limit", "25", "--json").json
    assert len(line) == 25
    times = [row["enqueued_at"] for row in line]
    assert times == sorted(times)
    for row in line[::8]:
        assert row["position"] == await queue.position(row["id"])
    one = receipts[7].id
    assert run("position", one, "--json").json == {
        "id": one, "position": await queue.position(one), "ahead": await queue.ahead(one),
    }  # fmt: skip
    story = run("show", one, "--json").json
    assert (story["status"], story["data"], story["places"]) == ("queued", {"user_id": "u7"}, ["main"])
    assert run("position", "unknown").code == run("show", "unknown").code == 1


async def test_changing(run, queue):
    made = run("enqueue", '{"user_id": "u1"}', "--json").json["id"]
    assert queue.routing.holders(made)[0] == queue.routing.home("x", [b"user_id", b"u1"])
    lines = "".join(f'{{"user_id": "u{n}"}}\n' for n in range(20))
    answer = run("enqueue", "-", "--json", stdin=lines)
    assert len(answer.json) == 20
    assert run("enqueue", '{"user_id": "u2"}', "--id", "own").code == 0
    assert await queue.length() == 22
    assert [row["outcome"] for row in run("remove", made, "own", "--yes", "--json").json] == ["removed", "removed"]
    assert run("remove", made, "own", "--yes").code == 1
    assert run("pause").code == 0
    assert [(await shard.stats()).paused for shard in queue.shards] == [True] * 4
    assert run("resume").code == 0
    assert not (await queue.stats()).paused


async def test_dead_letters(run, queue):
    died = await bury(queue, 9)
    assert [row["id"] for row in run("dlq", "list", "--json").json] == died[::-1]
    assert [row["id"] for row in run("dlq", "list", "--limit", "3", "--json").json] == died[:5:-1]
    assert run("dlq", "show", died[2], "--json").json["reason"] == "rejected"
    assert run("dlq", "requeue", died[0], died[1], "--json").code == 0
    assert run("dlq", "delete", "--all", "--text", "stock", "--yes").code == 0
    stats = await queue.stats()
    assert (stats.main, stats.dead) == (2, 0)


async def test_a_queue_without_shards_beside_it(run, queue, server, redis, prefix):
    """The registry of one says nothing of another."""
    assert run("enqueue", "{}", "--id", "m1", "--prefix", f"{prefix}x").code == 0
    assert await redis.zscore(f"{Settings(server.url).prefix(prefix + 'x')}:queue:main", "m1")
    assert len(run("enqueue", "{}", "--json", "--prefix", f"{prefix}x").json["id"]) == 36
    await queue.enqueue({"user_id": "u1"}, id="m2")
    (shard,) = [shard for shard in queue.shards if await shard.position("m2")]
    assert run("stats", "--json", "--prefix", shard.keys.prefix).json["main"] == 1, "one shard alone"


@pytest.mark.leaks("another program's key")
async def test_another_programs_key_where_a_registry_would_be(run, server, redis, prefix):
    await redis.set(f"{{{prefix}}}:shards", "x")
    assert run("enqueue", "{}", "--id", "m1").code == 0
    assert await redis.zscore(f"{Settings(server.url).prefix(prefix)}:queue:main", "m1")


async def test_several_servers(run, server, private, prefix):
    other = private()
    async with ShardedQueue(prefix, shards=4, url=[server.url, other.url]) as queue:
        await queue.enqueue_many([{"user_id": f"u{n}"} for n in range(40)])
        both = f"{server.url} {other.url}"
        assert run("stats", "--json", "--url", both).json["main"] == 40
        assert run("stats", "--json", STREAMS_QUEUE_URL=both).json["main"] == 40
        code, _, err = run("stats")
        assert code == 2
        assert "on 2 servers, 1 were named" in err
        code, _, err = run("stats", "--url", f"{other.url} {server.url}")
        assert code == 2
        assert "server 2 of 2" in err


async def test_what_shards_have_in_common_is_no_queue(run, server, prefix):
    async with ShardedQueue(prefix, shards=2, url=server.url):
        code, _, err = run("pause", "--prefix", f"{{{prefix}}}")
        assert code == 2
        assert f"write '{prefix}'" in err


async def test_one_shard_on_another_server(run, server, private, prefix):
    other = private()
    both = f"{server.url} {other.url}"
    async with ShardedQueue(prefix, shards=4, url=[server.url, other.url]) as queue:
        await queue.enqueue_many([{"user_id": f"u{n}"} for n in range(40)])
        for shard in queue.shards:
            assert run("stats", "--json", "--prefix", shard.keys.prefix, "--url", both).json["main"] == (
                await shard.length()
            )
        one = queue.shards[1]
        run("pause", "--prefix", one.keys.prefix, "--url", both)
        assert (await one.stats()).paused
        code, _, err = run("stats", "--prefix", one.keys.prefix, "--url", server.url)
        assert code == 2
        assert "on 2 servers, 1 were named" in err
        assert run("stats", "--prefix", queue.shards[0].keys.prefix, "--url", server.url).code == 0
        found = json.loads(run("doctor", "--prefix", one.keys.prefix, "--url", both, "--json").out)
        workers = next(check for check in found if check["check"] == "workers")
        assert f"wait: {await one.length()}" in workers["reason"]


async def test_the_exporter(start, queue, prefix):
    await queue.enqueue_many([{"user_id": f"u{n}"} for n in range(12)])
    process = start("exporter", "--port", "0")
    url = process.stderr.readline().split()[-1]
    assert f'streams_queue_depth{{queue="{prefix}",state="waiting"}} 12.0' in fetched(url)[1]
    load = json.loads(fetched(url.replace("/metrics", "/load"))[1])
    assert (load["queue"], load["waiting"]) == (prefix, 12)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


async def test_the_doctor_looks_at_every_shard(run, queue, server, private, prefix):
    found = json.loads(run("doctor", "--prefix", prefix, "--json").out)
    shards = {shard.keys.prefix for shard in queue.shards}
    assert {check["queue"] for check in found if check["queue"]} == shards | {prefix}
    other = private()
    async with ShardedQueue(f"{prefix}b", shards=3, url=[server.url, other.url]):
        both = f"{server.url} {other.url}"
        found = json.loads(run("doctor", "--prefix", f"{prefix}b", "--url", both, "--json").out)
    reached = [check["reason"] for check in found if check["check"] == "connection"]
    assert reached == [f"The server answers at {url}." for url in (server.url, other.url)]
    shards = {f"{{{prefix}b:{n}}}" for n in range(3)}
    assert {check["queue"] for check in found if check["queue"]} == shards | {f"{prefix}b"}


async def test_verify_looks_at_every_shard(run, queue, redis, prefix):
    receipts = await queue.enqueue_many([{"user_id": f"u{n}"} for n in range(30)])
    found = run("verify", "--json").json
    assert (found["prefix"], found["ids"]["main"], found["well"]) == (prefix, 30, True)
    harmed = receipts[3].id
    await redis.delete(queue.shards[queue.routing.holders(harmed)[0]].keys.message(harmed))
    code, out, _ = run("verify")
    assert code == 1
    assert f"queue {prefix}: NOT clean; 30 in main" in out
    assert f"fault: all ids have a body; 1 do not, as {harmed}" in out


@pytest.mark.parametrize("lines", [None, '{"user_id": "u1"}\n'])
async def test_one_shard_takes_no_messages_under_its_own_name(run, queue, lines):
    shard = queue.shards[1].keys.prefix
    code, out, err = run("enqueue", "-" if lines else '{"user_id": "u1"}', "--prefix", shard, stdin=lines or "")
    assert (code, out) == (2, "")
    assert f"{shard!r} is one shard of queue {queue.keys.prefix!r}" in err
    assert await queue.length() == 0


@pytest.mark.parametrize("options", [[], ["--dry-run"], ["--rollback", "--yes"]])
async def test_a_queue_with_shards_is_none_to_migrate(run, queue, redis, prefix, options):
    code, _, err = run("migrate", *options)
    assert code == 1
    assert f"queue {prefix!r} has shards: it never was of the older kind" in err
    assert not [key async for key in redis.scan_iter(f"{prefix}:*")]
