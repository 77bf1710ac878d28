"""What tests of the engine share: queues, running workers, and waiting for something to become true."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from servers import AnyServer
from streams_queue import Message, Queue, Worker

Handle = Callable[[Message[Any]], Awaitable[Any]]

LEASE = 1.0
SOON = 10.0
"""Seconds after which what should have happened by now is a failure; a passing test never waits that long."""


def warnings(records: list[logging.LogRecord]) -> list[logging.LogRecord]:
    """Those above information, without what a worker says of its server, which is the same in every test."""
    return [record for record in records if record.levelno > logging.INFO and "Remedy:" not in record.getMessage()]


def queue_at(server: AnyServer, prefix: str, **options: Any) -> Queue[Any]:
    """A queue on the test's server, to be opened."""
    return Queue(prefix, url=server.url, **options)


async def until(done: Callable[[], Any], seconds: float = SOON, what: str = "the condition") -> Any:
    """Poll `done`, a function or a coroutine function, until it is true, and return what it returned."""
    deadline = time.monotonic() + seconds
    while True:
        answer = done()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        await asyncio.sleep(0.01)


def worker_of(queue: Queue[Any], handle: Handle, **options: Any) -> Worker[Any]:
    """A worker with a short lease and no delay before retries, unless told otherwise."""
    worker = Worker(queue, **{"lease": LEASE, "retry_delay": 0.0, "grace": SOON, "poll_interval": 0.2, **options})
    worker.handler(handle)
    return worker


@contextlib.asynccontextmanager
async def running(worker: Worker[Any]) -> AsyncIterator[asyncio.Task[None]]:
    """The worker at work; it is stopped at the end, and what `run` raised is raised."""
    task = asyncio.create_task(worker.run())
    try:
        yield task
    except BaseException:
        task.cancel()
        await asyncio.wait([task])
        raise
    worker.stop()
    await task


async def work(queue: Queue[Any], handle: Handle, **options: Any) -> Worker[Any]:
    """Work until there is nothing left to do now."""
    worker = worker_of(queue, handle, **options)
    await worker.run(burst=True)
    return worker


class Handler:
    """A handler that remembers what it was given, and does as it is told."""

    def __init__(self, does: Callable[[Message[Any]], Any] | None = None) -> None:
        self.messages: list[Message[Any]] = []
        self._does = does

    @property
    def ids(self) -> list[str]:
        return [message.id for message in self.messages]

    async def __call__(self, message: Message[Any]) -> Any:
        self.messages.append(message)
        answer = self._does(message) if self._does else None
        return await answer if inspect.isawaitable(answer) else answer

    async def handle(self, message: Message[Any]) -> Any:
        """As a coroutine function, which `Worker.handler` wants."""
        return await self(message)


class Held:
    """A handler that waits to be let go, and tells when it is at work."""

    def __init__(self) -> None:
        self.started: list[Message[Any]] = []
        self.cancelled: list[str] = []
        self.finished: list[str] = []
        self.go = asyncio.Event()

    async def handle(self, message: Message[Any]) -> str:
        self.started.append(message)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.append(message.id)
            raise
        self.finished.append(message.id)
        return "let go"

    async def holds(self, count: int = 1) -> None:
        await until(lambda: len(self.started) >= count, what=f"{count} handlers at work")
