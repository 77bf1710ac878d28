"""A crew: workers of all shards of one queue, which share the slots of the one worker that they make up."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, Protocol

import anyio

from streams_queue.model import Payload
from streams_queue.queue import Queue


class Member(Protocol):
    """What works on one shard."""

    async def run(self, *, burst: bool = False) -> None:
        """Work until stopped; with `burst`, until there is nothing left to do in any shard."""
        ...

    def stop(self, grace: float | None = None) -> None:
        """Take nothing more; hand back what is not done after so many seconds."""
        ...


class Crew(Generic[Payload]):
    """Takes from all shards of a queue: each has its own member.

    A member that fails has all stop, in order: what the others hold is finished within the grace period.

    Args:
        hire: makes the member for a shard, ready to run.
        stopping: when it is set, all stop; set by the first that fails.
        grace: seconds that they have from then on.
    """

    def __init__(
        self, hire: Callable[[Queue[Payload]], Member], stopping: asyncio.Event, grace: Callable[[], float]
    ) -> None:
        self._hire = hire
        self._stopping = stopping
        self._grace = grace
        self.error: Exception | None = None
        """The first that a member failed with."""

    async def work(self, shards: Sequence[Queue[Payload]], *, burst: bool) -> None:
        """Return when all members are done."""
        members = [self._hire(shard) for shard in shards]
        async with anyio.create_task_group() as beside:
            beside.start_soon(self._stop, members)
            async with anyio.create_task_group() as working:
                for member in members:
                    working.start_soon(self._run, member, burst)
            beside.cancel_scope.cancel()

    async def _run(self, member: Member, burst: bool) -> None:
        try:
            await member.run(burst=burst)
        except Exception as error:  # noqa: BLE001  (to be raised when all have stopped)
            self.error = self.error or error
            self._stopping.set()

    async def _stop(self, members: Sequence[Member]) -> None:
        await self._stopping.wait()
        for member in members:
            member.stop(self._grace())
