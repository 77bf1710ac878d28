"""The background task of a processor: a worker for as long as it may run, started again where it could not."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from streams_queue.errors import StreamsQueueError
from streams_queue.transitions import Transitions
from streams_queue.worker import Worker

logger = logging.getLogger("bot_logic.services.redis_queue_manager")

AGAIN_AFTER = 1.0
"""Seconds before a processor that could not start tries again."""


class JointLock:
    """A lock that all processors of a queue hold together, so that a worker of the old code waits, and they for it.

    Args:
        key: of the lock.
        owner: the name that all of them give.
        ttl: seconds; renewed every third of it.
    """

    def __init__(self, key: str, owner: str, ttl: float) -> None:
        self._key = key
        self._owner = owner
        self._ttl = ttl

    async def acquire(self, transitions: Transitions) -> None:
        """Return when it is held; another owner is waited for."""
        waited = False
        while not await transitions.lock(self._key, self._owner, self._ttl, shared=True):
            if not waited:
                logger.warning("another kind of worker holds %s: waiting until it lets go", self._key)
            waited = True
            await asyncio.sleep(AGAIN_AFTER)

    async def keep(self, transitions: Transitions) -> None:
        """Renew it; return when another owner has it."""
        while True:
            await asyncio.sleep(self._ttl / 3)
            try:
                if not await transitions.lock(self._key, self._owner, self._ttl, shared=True):
                    return
            except StreamsQueueError as error:
                logger.warning("%s cannot be renewed at present: %s", self._key, error)


class Processor:
    """Runs workers that `make_worker` gives, one after the other, until it is stopped."""

    def __init__(
        self, make_worker: Callable[[], Awaitable[Worker[dict[str, Any]]]], joint_lock: JointLock | None = None
    ) -> None:
        self._make_worker = make_worker
        self._joint_lock = joint_lock
        self._worker: Worker[dict[str, Any]] | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Run in the background."""
        self._task = asyncio.create_task(self.run(), name="streams-queue processor")

    async def stop(self, timeout: float) -> None:
        """Return when it has ended, at most a little over `timeout` seconds from now."""
        self._stopping.set()
        if self._worker is not None:
            self._worker.stop(timeout)
        elif self._task is not None:
            self._task.cancel()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def run(self) -> None:
        """Work until stopped or cancelled. It waits for a server that is away, and says so."""
        said = ""
        while not self._stopping.is_set():
            try:
                await self._work()
            except StreamsQueueError as error:
                if str(error) != said:
                    logger.error("the processor cannot work at present, trying on: %s", error)  # noqa: TRY400
                said = str(error)
                await asyncio.sleep(AGAIN_AFTER)
            except Exception:
                logger.exception("the processor broke off, starting it again")
                await asyncio.sleep(AGAIN_AFTER)

    async def _work(self) -> None:
        worker = await self._make_worker()
        if self._joint_lock is None:
            await self._run_worker(worker)
            return
        transitions = worker.queue.transitions
        await self._joint_lock.acquire(transitions)
        keeping = asyncio.create_task(self._joint_lock.keep(transitions))
        keeping.add_done_callback(lambda task: None if task.cancelled() else worker.stop())
        try:
            await self._run_worker(worker)
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])

    async def _run_worker(self, worker: Worker[dict[str, Any]]) -> None:
        self._worker = worker
        try:
            await worker.run()
        finally:
            self._worker = None
