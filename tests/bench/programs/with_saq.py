"""SAQ. At least once: a job is moved to a list of active ones, and a sweep finds what a dead worker left there.

Its documentation names ``concurrency`` for throughput (https://saq-py.readthedocs.io/), and asks for hiredis
(``saq[hiredis]``). ``max_concurrent_ops`` throttles callers, and is raised to their number; ``ttl=-1`` writes no
results. It says nothing of uvloop, which helps it all the same.
"""

from __future__ import annotations

from typing import Any

from saq import Queue, Worker

from bench.programs.common import CALLERS, Finished, Task, from_callers, main

CONCURRENCY = 32


async def fill(task: Task) -> None:
    queue = Queue.from_url(task.url, max_concurrent_ops=CALLERS)
    await queue.connect()
    await from_callers(task, lambda payload: queue.enqueue("handle", ttl=-1, payload=payload))
    await queue.disconnect()


async def work(task: Task) -> None:
    finished = Finished(task.count)

    async def handle(ctx: Any, *, payload: dict[str, Any]) -> None:
        finished()

    queue = Queue.from_url(task.url)
    await queue.connect()
    await Worker(queue, [("handle", handle)], concurrency=CONCURRENCY).start()


if __name__ == "__main__":
    main(fill=fill, work=work)
