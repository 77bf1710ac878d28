"""streams-queue, set up as anybody's: leases, locks, fencing and counters on, and results for those who ask."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from bench.programs.common import Finished, Task, from_callers, in_batches, main, say
from streams_queue import Queue, Worker

PREFIX = "bench"

CONCURRENCY = 100
"""Handlers at a time, as the asyncio peers have it."""

FEW = 10_000
"""Messages after which the memory is looked at for the first time."""

_PAGE = os.sysconf("SC_PAGE_SIZE")


async def fill(task: Task) -> None:
    async with Queue(PREFIX, url=task.url) as queue:
        await from_callers(task, queue.enqueue)


async def fill_many(task: Task) -> None:
    async with Queue(PREFIX, url=task.url) as queue:
        await in_batches(task, queue.enqueue_many)


async def work(task: Task) -> None:
    """Finish so many, hand back what else is held, and end."""
    worker = _worker(task)
    finished = Finished(task.count, worker.stop)

    @worker.handler
    async def handle(message: Any) -> None:
        finished()

    await _run(worker)


async def grow(task: Task) -> None:
    """As `work`; tells how much memory the process has after the first ten thousand, and after all."""
    worker, done = _worker(task), 0

    @worker.handler
    async def handle(message: Any) -> None:
        nonlocal done
        done += 1
        if done in (FEW, task.count):
            say(event="memory", seconds=0, bytes=_resident())
        if done == task.count:
            worker.stop()

    await _run(worker)


async def react(task: Task) -> None:
    """Tell of each message how long ago it was sent."""
    worker = _worker(task)

    @worker.handler
    async def handle(message: Any) -> None:
        say(event="started", seconds=(time.monotonic_ns() - message.data["sent"]) / 1e9)

    await _run(worker)


def _worker(task: Task) -> Worker[dict[str, Any]]:
    return Worker(Queue(PREFIX, url=task.url), concurrency=CONCURRENCY)


async def _run(worker: Worker[Any]) -> None:
    async with worker.queue:
        await worker.run()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


if __name__ == "__main__":
    main(fill=fill, fill_many=fill_many, work=work, grow=grow, react=react)
