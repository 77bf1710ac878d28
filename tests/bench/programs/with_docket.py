"""docket. At least once: a stream with a consumer group, acknowledged after the work; idle tasks are delivered anew.

Its page on production (docs/production.md in https://github.com/chrisguidry/docket) has ``concurrency``, and
``execution_ttl=0`` "for maximum throughput"; ``max_connections`` is to exceed the concurrency. A batch of messages is
one round trip by default.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from docket import Docket, Worker

from bench.programs.common import Finished, Task, from_callers, main

CONCURRENCY = 100


def docket_at(task: Task) -> Any:
    return Docket(name="bench", url=f"{task.url}?max_connections={2 * CONCURRENCY}", execution_ttl=timedelta(0))


async def handle(payload: dict[str, Any]) -> None:
    finished()


def finished() -> None:
    """Set by `work`."""


async def fill(task: Task) -> None:
    async with docket_at(task) as docket:
        docket.register(handle)

        async def enqueue(payload: dict[str, Any]) -> None:
            await docket.add(handle)(payload)  # each call of `add` has a key of its own

        await from_callers(task, enqueue)


async def work(task: Task) -> None:
    global finished  # noqa: PLW0603  (docket knows a task by its module's function)
    finished = Finished(task.count)
    async with docket_at(task) as docket:
        docket.register(handle)
        async with Worker(docket, concurrency=CONCURRENCY) as worker:
            await worker.run_forever()


if __name__ == "__main__":
    main(fill=fill, work=work)
