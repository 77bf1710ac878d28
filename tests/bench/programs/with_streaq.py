"""streaq. At least once: a stream with a consumer group, acknowledged after the work; idle tasks are claimed anew.

Its documentation names ``concurrency``, which also sets how many tasks are prefetched, and its own benchmarks use 32
(https://streaq.readthedocs.io/en/latest/worker.html). `enqueue_many` is its batch call. ``ttl=0`` keeps no results;
``silent`` writes no log lines. uvloop comes in by anyio's options.
"""

from __future__ import annotations

from typing import Any

from streaq import Worker

from bench.programs.common import Finished, Task, from_callers, in_batches, main

CONCURRENCY = 100


def made(task: Task, handle: Any) -> tuple[Any, Any]:
    worker = Worker(redis_url=task.url, concurrency=CONCURRENCY, handle_signals=False)
    return worker, worker.task(handle, name="handle", ttl=0, silent=True)


async def nothing(payload: dict[str, Any]) -> None: ...


async def fill(task: Task) -> None:
    worker, handle = made(task, nothing)
    async with worker:
        await from_callers(task, lambda payload: handle.enqueue(payload).start())


async def fill_many(task: Task) -> None:
    worker, handle = made(task, nothing)
    async with worker:
        await in_batches(task, lambda payloads: worker.enqueue_many([handle.enqueue(each) for each in payloads]))


async def work(task: Task) -> None:
    finished = Finished(task.count)

    async def handle(payload: dict[str, Any]) -> None:
        finished()

    worker, _ = made(task, handle)
    await worker.run_async()


if __name__ == "__main__":
    main(fill=fill, fill_many=fill_many, work=work)
