"""BullMQ for Python. At least once: a job has a lock while it is worked on, and stalled ones are moved back.

Its documentation has ``concurrency``, `addBulk` "for better performance when adding multiple jobs" and
``removeOnComplete`` (https://docs.bullmq.io/python/introduction).
"""

from __future__ import annotations

import asyncio
from typing import Any

from bullmq import Queue, Worker

from bench.programs.common import Finished, Task, from_callers, in_batches, main

CONCURRENCY = 100
OPTIONS = {"removeOnComplete": True}


async def fill(task: Task) -> None:
    queue = Queue("bench", {"connection": task.url})
    await from_callers(task, lambda payload: queue.add("handle", payload, OPTIONS))
    await queue.close()


async def fill_many(task: Task) -> None:
    queue = Queue("bench", {"connection": task.url})
    await in_batches(
        task,
        lambda payloads: queue.addBulk([{"name": "handle", "data": each, "opts": OPTIONS} for each in payloads]),
    )
    await queue.close()


async def work(task: Task) -> None:
    finished = Finished(task.count)

    async def handle(job: Any, token: str) -> None:
        finished()

    worker = Worker("bench", handle, {"connection": task.url, "concurrency": CONCURRENCY})
    await asyncio.Event().wait()
    await worker.close()


if __name__ == "__main__":
    main(fill=fill, fill_many=fill_many, work=work)
