"""`streams-queue reshard`: what it prints and how it ends; killed under load, and run again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import setups
from cli.conftest import PROGRAM
from helpers import until
from streams_queue import ShardedQueue
from streams_queue.failpoints import VARIABLE
from streams_queue.keys import registry_prefix
from streams_queue.settings import Settings
from streams_queue_migrations.shard_door import RegistryDoor, ShardDoor

PROCESS = Path(__file__).parents[1] / "processes" / "sharded.py"
KILLS = 8
"""That meet a change on its way."""


@pytest.fixture
def prefix(sharded_prefix: str) -> str:
    return sharded_prefix


@pytest.fixture
def redis(everywhere: Any) -> Any:
    return everywhere


@pytest.fixture
async def queue(server, prefix) -> AsyncIterator[ShardedQueue[Any]]:
    async with ShardedQueue(prefix, shards=3, key="user", url=server.url) as queue:
        await queue.enqueue_many([{"user": f"u{n}"} for n in range(60)])
        yield queue


async def places(queue: ShardedQueue[Any], shards: int) -> dict[str, list[int]]:
    """In which shards each id stands, whatever the set."""
    found: dict[str, list[int]] = {}
    for number, shard in enumerate(queue._all_shards[:shards]):
        door = ShardDoor(shard.connection, shard.keys)
        for name in ("main", "retry", "scheduled", "dlq"):
            for id in await door.command("ZRANGE", f"{shard.keys.prefix}:queue:{name}", 0, -1):
                found.setdefault(id.decode(), []).append(number)
    return found


async def are_at_home(queue: ShardedQueue[Any], users: dict[str, str], count: int) -> None:
    """Each message stands once, in the shard of its key."""
    await queue.look()
    assert (queue.routing.shards, queue.routing.moving) == (count, False)
    homes = {id: [queue.routing.home(id, [b"user", user.encode()])] for id, user in users.items()}
    assert await places(queue, len(queue._all_shards)) == homes


# ---- what it prints, and how it ends


@pytest.mark.parametrize("count", [5, 2])
async def test_another_number(run, queue, count):
    users = {id: message.data["user"] for id in await places(queue, 3) if (message := await queue.get(id))}
    before = await places(queue, 3)
    plan = run("reshard", "--shards", str(count), "--dry-run", "--json").json
    assert (plan["before"], plan["after"], plan["under_way"], plan["well"]) == (3, count, False, True)
    assert [shard["messages"] for shard in plan["shards"]] == [
        sum(where == [n] for where in before.values()) for n in range(3)
    ]
    would_move = sum(shard["elsewhere"] for shard in plan["shards"])
    assert 0 < would_move < 60
    told = run("reshard", "--shards", str(count), "--dry-run")
    assert told.code == 0
    assert "nothing was written" in told.out
    assert f"from 3 shards to {count}, {would_move} of 60 messages would move" in told.out
    assert await places(queue, 3) == before
    await queue.look()
    assert queue.routing.shards == 3
    done = run("reshard", "--shards", str(count), "--json").json
    assert (done["before"], done["after"], done["moved"], done["well"]) == (3, count, {"main": would_move}, True)
    assert (done["finished"], done["expired"]) == (0, 0)
    assert sum(shard["messages"] for shard in done["shards"]) == 60
    assert all(shard["elsewhere"] == 0 for shard in done["shards"])
    assert all(check["violations"] == 0 for check in done["checks"])
    await are_at_home(queue, users, count)
    assert run("stats", "--json").json["main"] == 60


async def test_its_report(run, queue, prefix):
    code, out, err = run("reshard", "--shards", "5")
    assert (code, err) == (0, "")
    first, second, third = out.splitlines()
    assert first == f"queue {prefix}: clean; 5 shards, 3 before"
    moved = int(second.split()[0])
    assert second.startswith(f"  {moved} messages moved in ")
    assert third == f"  {moved} moved in main"


async def test_the_same_number(run, queue):
    before = await places(queue, 3)
    code, out, _ = run("reshard", "--shards", "3")
    assert code == 0
    assert "clean; 3 shards, 3 before" in out
    assert "0 messages moved" in out
    assert await places(queue, 3) == before


@pytest.mark.parametrize("count", ["0", "-1", "1025", "many", "2.5"])
async def test_a_wrong_number(run, queue, redis, prefix, count):
    code, out, err = run("reshard", "--shards", count)
    assert (code, out) == (2, "")
    assert "--shards" in err or f"shards={count} is not a whole number from 1 to 1024" in err
    for option in ("--dry-run", "--json"):
        assert run("reshard", "--shards", count, option).code == 2
    assert await redis.hget(f"{registry_prefix(prefix)}:shards", "count") == "3"


def test_no_number_and_no_queue(run):
    assert run("reshard").code == run("reshard", "--shards", "4", "--prefix", "").code == 2


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
async def test_a_queue_without_shards(run, server, prefix, redis, options):
    assert run("enqueue", "{}", "--id", "m1").code == 0
    code, out, err = run("reshard", "--shards", "4", *options)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: queue {Settings(server.url).prefix(prefix)!r} has no shards: ")
    assert not await redis.exists(f"{registry_prefix(prefix)}:shards")


async def test_another_change_under_way(run, queue, redis, prefix):
    await redis.hset(f"{registry_prefix(prefix)}:shards", mapping={"count": 6, "former": 3, "moving": 1, "version": 2})
    code, _, err = run("reshard", "--shards", "4")
    assert code == 1
    assert f"`streams-queue reshard --prefix {prefix} --shards 6`" in err
    assert "it was begun before, and is to be finished" in run("reshard", "--shards", "6", "--dry-run").out
    assert run("reshard", "--shards", "6").code == 0


async def test_a_server_that_is_away(run, private):
    gone = private()
    gone.kill()
    code, out, err = run("reshard", "--shards", "4", "--url", gone.url)
    assert (code, out) == (3, "")
    assert err.startswith("error: ")


# ---- killed


class Load:
    """Producers and workers at work, and the command, each in a process of its own."""

    def __init__(self, urls: str, prefix: str, ledger: Path) -> None:
        self.ledger = ledger
        self.urls = urls.split()
        self._arguments = [urls, prefix, str(ledger)]
        self._environment = os.environ | {"STREAMS_QUEUE_URL": urls, "STREAMS_QUEUE_PREFIX": prefix}
        self._stack = contextlib.ExitStack()

    def start(self, role: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, str(PROCESS), role, *self._arguments], env=self._environment, stdout=subprocess.PIPE
        )
        self._stack.enter_context(process)
        self._stack.callback(process.kill)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        return process

    async def begin(self, count: int, dies: float = 0.0) -> asyncio.subprocess.Process:
        """The command, which dies with this probability at each of its steps."""
        return await asyncio.create_subprocess_exec(
            *PROGRAM, "reshard", "--shards", str(count), "--json", stdout=subprocess.PIPE,
            env=self._environment | ({VARIABLE: f"mid_reshard:kill@{dies}"} if dies else {}),
        )  # fmt: skip

    async def reshard(self, count: int, dies: float = 0.0) -> tuple[int, Any]:
        """The command's exit code and report."""
        process = await self.begin(count, dies)
        out, _ = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode is not None
        return process.returncode, json.loads(out) if out else None

    def noted(self, word: str) -> list[list[str]]:
        lines = [line.split() for line in self.ledger.read_text().splitlines()] if self.ledger.exists() else []
        return [line[1:] for line in lines if line[0] == word]

    def end(self) -> None:
        self._stack.close()


@pytest.fixture
def load(private, prefix, tmp_path) -> Iterator[Load]:
    load = Load(f"{private().url} {private().url}", prefix, tmp_path / "ledger")
    yield load
    load.end()


@contextlib.asynccontextmanager
async def at_work(load: Load, queue: ShardedQueue[Any], after: int) -> AsyncIterator[None]:
    """Two producers and two workers, meanwhile; at the end the number of shards is changed by an undisturbed command,
    and each message was begun once, or stands where it belongs.
    """
    producers = [load.start("producer") for _ in range(2)]
    workers = [load.start("worker") for _ in range(2)]
    await until(lambda: len(load.noted("start")) > 100)
    yield
    code, report = await load.reshard(after)
    assert (code, report["well"]) == (0, True), report
    for process in producers:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    sent = [id for id, _ in load.noted("sent")]
    await until(lambda: len(load.noted("start")) >= len(sent), 20, "all sent were begun")
    await until(lambda: is_empty(queue), what="nothing at work")
    for process in workers:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    later = dict(load.noted("later"))
    assert Counter(id for (id,) in load.noted("start")) == Counter(sent)
    await are_at_home(queue, later, after)
    stats = await queue.stats()
    assert (stats.retry, stats.dead, stats.lost, stats.scheduled) == (0, 0, 0, len(later))


@pytest.mark.parametrize(("before", "after"), [(3, 5), (5, 2)])
async def test_killed_under_load_and_run_again(load, prefix, before, after):
    async with ShardedQueue(prefix, shards=before, key="user", url=load.urls) as queue, at_work(load, queue, after):
        codes = []
        for dies in (1.0, 0.3, 0.15, 0.1):
            codes.append((await load.reshard(after, dies))[0])
            if len(codes) > 1:  # after the first, its lock is waited for
                await unlocked(queue)
        assert set(codes) <= {-signal.SIGKILL, 0}
        assert codes.count(-signal.SIGKILL) >= 2, codes


@pytest.fixture
def cluster_load(tmp_path, prefix) -> Iterator[Load]:
    cluster = setups.Cluster(tmp_path / "cluster", replicas=(0, 0, 0))
    load = Load(cluster.url, prefix, tmp_path / "ledger")
    yield load
    load.end()
    cluster.stop()


async def test_killed_at_any_moment_on_a_cluster(cluster_load, prefix):
    """By a signal from outside, wherever it is, to more shards and to fewer: each may be on another node, and so may
    the registry.
    """
    load, few, many = cluster_load, 3, 8
    goal, kills = many, Counter[bool]()
    async with ShardedQueue(prefix, shards=few, key="user", url=load.urls) as queue, at_work(load, queue, few):
        registry = RegistryDoor.of(queue.connection, prefix)
        while kills[True] < KILLS:
            command = await load.begin(goal)
            await until(lambda: registry.command("EXISTS", registry.keys.resharder), what="the command at work")
            await asyncio.sleep(random.uniform(0, 0.5))  # the fault's own moment
            with contextlib.suppress(ProcessLookupError):
                command.kill()
            await command.communicate()
            await unlocked(queue)
            count, moving = await registry.command("HMGET", registry.keys.registry, "count", "moving")
            kills[moving == b"1"] += 1
            if (int(count), moving) == (goal, None):
                goal = few if goal == many else many
        if goal == many:
            assert (await load.reshard(many))[0] == 0
    print(f"{kills[True]} of {kills.total()} kills met it on its way")


async def unlocked(queue: ShardedQueue[Any]) -> None:
    """The lock of a resharder that was killed is not waited for."""
    registry = RegistryDoor.of(queue.connection, queue.keys.prefix)
    await registry.command("DEL", registry.keys.resharder)


async def is_empty(queue: ShardedQueue[Any]) -> bool:
    stats = await queue.stats()
    return (stats.main, stats.processing) == (0, 0)
