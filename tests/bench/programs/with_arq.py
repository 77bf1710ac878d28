"""arq. At least once: "pessimistic execution", a job leaves the queue when it has succeeded or failed.

``max_jobs`` and ``queue_read_limit`` (five times as many by default) are what its documentation offers for throughput,
``keep_result=0`` is its way of not writing results that nobody reads: https://arq-docs.helpmanual.io/.
It says nothing of uvloop, which helps it all the same.
"""

from __future__ import annotations

from typing import Any

from arq import create_pool, func
from arq.connections import RedisSettings
from arq.worker import Worker

from bench.programs.common import Finished, Task, from_callers, main

MAX_JOBS = 100


async def fill(task: Task) -> None:
    pool = await create_pool(RedisSettings.from_dsn(task.url))
    await from_callers(task, lambda payload: pool.enqueue_job("handle", payload))
    await pool.aclose()


async def work(task: Task) -> None:
    finished = Finished(task.count)

    async def handle(ctx: dict[str, Any], payload: dict[str, Any]) -> None:
        finished()

    worker = Worker(
        [func(handle, name="handle", keep_result=0)],
        redis_settings=RedisSettings.from_dsn(task.url),
        max_jobs=MAX_JOBS,
    )
    await worker.async_run()


if __name__ == "__main__":
    main(fill=fill, work=work)
