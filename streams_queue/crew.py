"""A crew: what works on all shards of one queue, in the slots of one worker."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Generic, Protocol

import anyio
import anyio.abc

from streams_queue.errors import QueueUnavailable
from streams_queue.model import Payload
from streams_queue.queue import Queue

logger = logging.getLogger(__name__)

LOOKS = 0.5
"""Seconds between two looks at which shards there are."""


class Member(Protocol):
    """What works on one shard."""

    async def run(self, *, burst: bool = False) -> None:
        """Work until stopped; with `burst`, until there is nothing left to do in any shard."""
        ...

    def stop(self, grace: float | None = None) -> None:
        """Take nothing more; hand back what is not done after so many seconds."""
        ...


class Crew(Generic[Payload]):
    """Takes from all shards of a queue: each has its own member, which comes and goes with it.

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
        self._members: dict[Queue[Payload], Member] = {}
        self._began = False
        self.error: BaseException | None = None
        """The first that a member failed with."""

    async def work(self, shards: Callable[[], Sequence[Queue[Payload]]], *, burst: bool) -> None:
        """Return when all members are done.

        Args:
            shards: those that there are now.
            burst: end when there is nothing left to do.
        """
        async with anyio.create_task_group() as beside:
            async with anyio.create_task_group() as working:
                self._follow(shards(), working, burst)
                self._began = True
                beside.start_soon(self._keep_following, shards, working, burst)
                beside.start_soon(self._stop)
            beside.cancel_scope.cancel()

    def _follow(self, shards: Sequence[Queue[Payload]], working: anyio.abc.TaskGroup, burst: bool) -> None:
        for shard in shards:
            if shard not in self._members:
                member = self._members[shard] = self._hire(shard)
                working.start_soon(self._run, shard, member, burst, self._began)
        for shard, member in self._members.items():
            if shard not in shards:
                member.stop(self._grace())

    async def _keep_following(
        self, shards: Callable[[], Sequence[Queue[Payload]]], working: anyio.abc.TaskGroup, burst: bool
    ) -> None:
        while self._members:  # without any, all is over
            if not self._stopping.is_set():
                self._follow(shards(), working, burst)
            await asyncio.sleep(LOOKS)

    async def _run(self, shard: Queue[Payload], member: Member, burst: bool, later: bool) -> None:
        try:
            await member.run(burst=burst)
        except QueueUnavailable as error:
            if later:
                # The next look tries again.
                logger.warning("shard %s is not worked on yet: %s", shard.keys.prefix, error)
            else:
                self._fail(error)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  (to be raised when all have stopped)
            self._fail(error)
        finally:
            if not burst:  # else it has done what there was to do
                del self._members[shard]

    def _fail(self, error: BaseException) -> None:
        self.error = self.error or error
        self._stopping.set()

    async def _stop(self) -> None:
        await self._stopping.wait()
        for member in self._members.values():
            member.stop(self._grace())
