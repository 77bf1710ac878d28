"""The engine under one `RedisQueueManager` in one event loop."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from streams_queue import tracing
from streams_queue.answers import Delivery, Enqueued, NewMessage, Refused
from streams_queue.batching import Batcher
from streams_queue.codec import Fields
from streams_queue.listener import Event
from streams_queue.maintenance import Maintenance
from streams_queue.model import FINAL
from streams_queue.outcomes import Policy
from streams_queue.queue import Queue
from streams_queue.refusals import rejection
from streams_queue.transitions import Transitions
from streams_queue.worker import consumer_name

TOLD_WITHIN = 5.0
"""Seconds that a callback in this process is waited for at most."""


class Engine:
    """A connected queue, and the messages that this process holds by hand.

    Args:
        policy: what the manager's attributes say now; asked at each use, since they may be set at any time.
        index_users: whether messages are found by their user, too.
    """

    def __init__(self, prefix: str, policy: Callable[[], Policy], *, index_users: bool) -> None:
        self.queue: Queue[dict[str, Any]] = Queue(prefix)
        self.consumer = consumer_name()
        self._enqueues: Batcher[NewMessage, Enqueued | Refused] = Batcher(self._send)
        self._policy = policy
        self._index_users = index_users
        self._held: dict[str, Delivery] = {}
        self._maintenance: Maintenance | None = None
        self._opening: asyncio.Task[None] | None = None
        self._is_open = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def transitions(self) -> Transitions:
        """The door to Redis."""
        return self.queue.transitions

    async def open(self) -> None:
        """Connect, once. Whoever comes meanwhile shares the attempt: a server that is away costs each one timeout."""
        if self._is_open:
            return
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
            self._opening.add_done_callback(self._opened)
        await asyncio.shield(self._opening)

    async def _open(self) -> None:
        await self.queue.open()
        if self._index_users:
            await self.transitions.index_users()

    def _opened(self, attempt: asyncio.Task[None]) -> None:
        self._opening = None
        self._is_open = not attempt.cancelled() and attempt.exception() is None

    async def close(self) -> None:
        """Disconnect; what is held by hand comes back to the line when its lease runs out."""
        await self._enqueues.drain()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.queue.close()

    def in_background(self, task: asyncio.Task[None]) -> None:
        """Keep a task until it is done."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def accept(self, message: NewMessage) -> Enqueued:
        """Put a message in the queue.

        Raises:
            Rejected: a limit of the queue refuses it.
        """
        if tracing.is_on():
            return await tracing.send(self.queue.keys.prefix, [message], lambda traced: self._accept(*traced))
        return await self._accept(message)

    async def _accept(self, message: NewMessage) -> Enqueued:
        answer = await self._enqueues.submit(message)
        if isinstance(answer, Refused):
            raise rejection(self.queue.keys.prefix, answer)
        return answer

    async def _send(self, messages: Sequence[NewMessage]) -> Sequence[Enqueued | Refused]:
        # An id is known no longer than its message is unfinished: the old code deleted what was done, and took the id
        # of a dead letter for a new message. The engine remembers both for a while.
        return await self.transitions.enqueue(
            messages, dedup_expiry=self._policy().dedup_expiry, index_users=self._index_users, anew=True
        )

    # ---- messages held by hand: claimed, worked on and finished by calls, with no worker around them

    def held(self, id: str) -> Delivery | None:
        """The delivery of a message that this process holds by hand."""
        return self._held.get(id)

    def let_go(self, id: str) -> None:
        """It is finished, or another is asked for."""
        self._held.pop(id, None)

    async def keep(self, delivery: Delivery, lock: float) -> bool:
        """Keep a held message for `lock` seconds more; False when it is lost.

        A lost one stays among those held until another is asked for: calls on it must not pass for orders from outside.
        """
        (still_held,) = await self.transitions.renew(self.consumer, [delivery.lease], lock=lock)
        return still_held

    async def report(self, event: Event, fields: Fields) -> None:
        """Tell who listens to a message of its end, ahead of the transition; wait for a callback in this process."""
        channels = fields.get("_sq_listener", b"").decode(errors="replace").split()
        listener, told = self.queue.listener, asyncio.Event()

        async def hear(heard: Event) -> None:
            if heard.status in FINAL:
                told.set()

        if listener.channel in channels:
            listener.hear(event.id, hear)  # after the callback, which then has been told
        else:
            told.set()
        try:
            await self.transitions.tell(channels, event.encode())
            with suppress(TimeoutError):
                async with asyncio.timeout(TOLD_WITHIN):
                    await told.wait()
        finally:
            listener.forget(event.id, hear)

    def take_over(self, predecessor: "Engine") -> None:
        """What this process held in an event loop that has ended, it holds in this one."""
        if predecessor._held:
            self.consumer, self._held = predecessor.consumer, predecessor._held

    async def next_held(self, lease: float, lock: float) -> str | None:
        """The id of the message to work on: the one held already, else one newly claimed.

        There may be no worker that looks after the queue, so this does.

        Args:
            lease: seconds, the queue's.
            lock: seconds that the message is kept for a caller who does not renew; sweepers respect it.
        """
        for id, delivery in list(self._held.items()):
            if not await self.transitions.in_line(id):  # somebody took it out
                await self.transitions.release(self.consumer, [delivery.lease])
            elif await self.keep(delivery, lock):
                return id
            self.let_go(id)
        policy = self._policy()
        await self.transitions.join(self.consumer, lease)
        if self._maintenance is None or self._maintenance.lease != lease:
            self._maintenance = Maintenance(self.transitions, self.consumer, lease, policy)
        await self._maintenance.glance()
        while True:
            claimed = await self.transitions.claim(self.consumer, 1, lock=lock)
            for delivery in claimed.deliveries:
                self._held[delivery.lease.id] = delivery
                return delivery.lease.id
            if not claimed.looked_at:
                return None

    async def fields(self, id: str) -> Fields:
        """The hash of a message, empty when there is none."""
        (found,) = await self.transitions.read([id])
        return found
