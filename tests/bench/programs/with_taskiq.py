"""taskiq with taskiq-redis. At least once with `RedisStreamBroker`, which acknowledges after the work.

Its documentation names ``max_async_tasks`` and ``max_prefetch`` for throughput, and uses uvloop where it is installed
(https://taskiq-python.github.io/guide/cli.html); without ``validate_params`` it parses no annotations. The stream
broker is the one "with acknowledgements" (https://github.com/taskiq-python/taskiq-redis); it reads 100 messages at a
time. There is no result backend, so no results are written.
"""

from __future__ import annotations

from typing import Any

from taskiq.api import run_receiver_task
from taskiq_redis import RedisStreamBroker

from bench.programs.common import Finished, Task, from_callers, main

MAX_ASYNC_TASKS = 100
MAX_PREFETCH = 100


async def fill(task: Task) -> None:
    broker = RedisStreamBroker(task.url)

    async def handle(payload: dict[str, Any]) -> None: ...

    kicker = broker.register_task(handle, task_name="handle")
    await broker.startup()
    await from_callers(task, kicker.kiq)
    await broker.shutdown()


async def work(task: Task) -> None:
    finished = Finished(task.count)
    broker = RedisStreamBroker(task.url)

    async def handle(payload: dict[str, Any]) -> None:
        finished()

    broker.register_task(handle, task_name="handle")
    await run_receiver_task(
        broker,
        validate_params=False,
        max_async_tasks=MAX_ASYNC_TASKS,
        max_prefetch=MAX_PREFETCH,
        run_startup=True,
    )


if __name__ == "__main__":
    main(fill=fill, work=work)
