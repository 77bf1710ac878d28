"""Real processes, killed for real. The ledger of runs is a file, outside Redis."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from helpers import LEASE, queue_at, until
from streams_queue import HandlerFailed, Queue, maintenance

SCRIPT = Path(__file__).parent / "processes" / "worker.py"
RECOVERY = LEASE + maintenance.INTERVAL + 1.0
"""Seconds in which what a dead worker held is at work again: lease, sweep, and one more."""


class Run(NamedTuple):
    word: str
    id: str
    delivery: int
    pid: int


class Lab:
    """Workers as processes, and what they wrote down."""

    def __init__(self, url: str, prefix: str, ledger: Path) -> None:
        self.ledger = ledger
        self._arguments = [url, prefix, str(ledger)]
        self._workers: list[subprocess.Popen[bytes]] = []

    def start(self, lease: float = LEASE, concurrency: int = 4) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(SCRIPT), *self._arguments, str(lease), str(concurrency)]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE)
        self._workers.append(worker)
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"ready\n"
        return worker

    def runs(self, word: str) -> list[Run]:
        if not self.ledger.exists():
            return []
        lines = [line.split() for line in self.ledger.read_text().splitlines()]
        return [Run(line[0], line[1], int(line[2]), int(line[3])) for line in lines if line[0] == word]

    def end(self) -> None:
        for worker in self._workers:
            worker.send_signal(signal.SIGCONT) if worker.poll() is None else None
            worker.kill()
            worker.wait()
            assert worker.stdout is not None
            worker.stdout.close()


@pytest.fixture
def lab(server, prefix, tmp_path) -> Iterator[Lab]:
    lab = Lab(server.url, prefix, tmp_path / "ledger")
    yield lab
    lab.end()


@pytest.fixture
async def queue(server, prefix) -> AsyncIterator[Queue[Any]]:
    async with queue_at(server, prefix) as queue:
        yield queue


async def started(lab: Lab, count: int = 1) -> list[Run]:
    found: list[Run] = await until(lambda: runs if len(runs := lab.runs("start")) >= count else None)
    return found


async def test_killed_in_the_middle_of_a_message(queue, lab):
    """Another worker finishes it within lease + sweep + 1 s."""
    first = lab.start()
    id = (await queue.enqueue({"do": "wait once"})).id
    (run,) = await started(lab)
    assert run.pid == first.pid
    second = lab.start()
    first.kill()
    killed = time.monotonic()
    assert await queue.result(id, timeout=15) == f"done by {second.pid}"
    assert time.monotonic() - killed < RECOVERY
    assert [(run.delivery, run.pid) for run in lab.runs("start")] == [(1, first.pid), (2, second.pid)]
    stats = await queue.stats()
    assert (stats.main, stats.processing, stats.counters["recovered_messages"]) == (0, 0, 1)


async def test_a_message_that_kills_its_process(queue, lab):
    """It becomes a dead letter, those beside it are done, and the queue flows on."""
    innocents = [(await queue.enqueue({"n": n})).id for n in range(5)]
    poison = (await queue.enqueue({"do": "die"})).id
    innocents += [(await queue.enqueue({"n": n})).id for n in range(4)]

    async def keep_alive() -> None:
        while True:
            worker = await asyncio.to_thread(lab.start, LEASE, 2)
            await asyncio.to_thread(worker.wait)

    keeper = asyncio.create_task(keep_alive())
    try:
        with pytest.raises(HandlerFailed) as failure:
            await queue.result(poison, timeout=20)
        assert failure.value.reason == "crash"
        await asyncio.gather(*(queue.result(id, timeout=10) for id in innocents))
    finally:
        keeper.cancel()
        await asyncio.wait([keeper])
        lab.end()
    assert len([run for run in lab.runs("start") if run.id == poison]) == 3
    (letter,) = await queue.dead_letters.list()
    assert (letter.id, letter.attempts) == (poison, 3)


async def test_a_zombie_finishes_nothing(queue, lab):
    """Stopped for three leases in the middle of a message, then continued: the message is another's by then."""
    zombie = lab.start(concurrency=1)
    id = (await queue.enqueue({"do": "wait once"})).id
    await started(lab)
    zombie.send_signal(signal.SIGSTOP)
    other = lab.start(concurrency=1)
    assert await queue.result(id, timeout=10) == f"done by {other.pid}"
    await asyncio.sleep(LEASE)
    stats = await queue.stats()
    zombie.send_signal(signal.SIGCONT)
    again = (await queue.enqueue({})).id
    await queue.result(again, timeout=10)
    await asyncio.sleep(LEASE)
    assert [(run.id, run.pid) for run in lab.runs("end") if run.id == id] == [(id, other.pid)]
    later = await queue.stats()
    assert later.counters["completed_messages"] == stats.counters["completed_messages"] + 1
    assert later.counters["lost_leases"] == 1
    assert zombie.poll() is None, "it goes on with other messages"


async def test_a_zombie_that_would_have_finished(queue, lab):
    """Its handler ends the moment it is continued: done once, by who holds the message, and lost once."""
    zombie = lab.start(concurrency=1)
    id = (await queue.enqueue({"do": "wait", "seconds": 0.7})).id
    await started(lab)
    zombie.send_signal(signal.SIGSTOP)
    other = lab.start(concurrency=1)
    await started(lab, 2)
    zombie.send_signal(signal.SIGCONT)
    assert await queue.result(id, timeout=10) == f"done by {other.pid}"
    assert (await queue.stats()).counters["completed_messages"] == 1

    async def lost() -> bool:
        return "lost_leases" in (await queue.stats()).counters

    await until(lost)
    await asyncio.sleep(LEASE)
    assert (await queue.stats()).counters["lost_leases"] == 1


async def test_sigterm_within_the_grace_period(queue, lab, redis, prefix):
    worker = lab.start()
    id = (await queue.enqueue({"do": "wait", "seconds": 0.5})).id
    await started(lab)
    worker.terminate()
    assert await asyncio.to_thread(worker.wait, 5) == 0
    assert await queue.result(id) == f"done by {worker.pid}"
    names = {info["name"] for info in await redis.xinfo_consumers(f"{prefix}:stream", "workers")}
    assert names <= {"returned", "locked"}


async def test_workers_killed_one_after_the_other_lose_nothing(queue, lab):
    """Every accepted message runs; what ran twice was in flight at a kill."""
    kills, ids = 5, []
    lab.start()
    for _ in range(kills):
        victim = await asyncio.to_thread(lab.start)
        receipts = await queue.enqueue_many([{"do": "wait", "seconds": 0.02} for _ in range(60)])
        ids += [receipt.id for receipt in receipts]
        await until(partial(is_at_work, lab, victim.pid))
        victim.kill()
    await asyncio.gather(*(queue.result(id, timeout=30) for id in ids))
    ended = [run.id for run in lab.runs("end")]
    assert set(ended) == set(ids)
    twice = len(lab.runs("start")) - len(ids)
    assert twice <= kills * 4
    stats = await queue.stats()
    assert (stats.main, stats.processing, stats.dead) == (0, 0, 0)
    assert stats.counters["completed_messages"] == len(ids)


def is_at_work(lab: Lab, pid: int) -> bool:
    return any(run.pid == pid for run in lab.runs("start"))
