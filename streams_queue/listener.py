"""Hears what becomes of messages, on one channel of this process.

A published event can be missed (a broken connection, a server that fell over), a status in Redis cannot: so whoever
waits here is also served by reading the state again from time to time.
"""

import asyncio
import itertools
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from streams_queue.connection import Connection
from streams_queue.door import BATCH
from streams_queue.errors import StreamsQueueError
from streams_queue.keys import Keys
from streams_queue.model import FINAL, Status
from streams_queue.transitions import Transitions
from streams_queue.translation import translated

logger = logging.getLogger(__name__)

REREAD = 5.0
"""Seconds between two looks at the state of what is listened to, 500 messages a look."""


class Event(NamedTuple):
    """A message came to a status; `detail` is its encoded result or its error."""

    id: str
    status: Status
    detail: bytes

    def encode(self) -> bytes:
        """As it goes over the channel; scripts write the same (`tell` in ``lua/include/house.lua``)."""
        return b"\n".join((self.id.encode(errors="surrogateescape"), self.status.encode(), self.detail))


Hear = Callable[[Event], Awaitable[None]]


class Listener:
    """Calls back for every status of the messages it is told to hear, and forgets each at its final one.

    Events of one message are handed over one after the other, those of different messages side by side. While the
    connection is broken a status on the way is missed when another follows it soon; the final one is read again. What
    finished so long ago that no trace is left of it is reported as ``expired``.
    """

    def __init__(self, connection: Connection, keys: Keys, transitions: Transitions) -> None:
        self._connection = connection
        self._transitions = transitions
        self.channel = keys.channel(uuid.uuid4().hex)
        self._hearers: dict[str, list[Hear]] = {}
        self._seen: dict[str, Status] = {}
        self._untraced: set[str] = set()
        self._tails: dict[str, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None
        self._subscribed = asyncio.Event()

    async def start(self) -> None:
        """Return when events are heard: what happens from then on is not missed."""
        if self._task is None or self._task.done():
            self._subscribed.clear()
            reader = self._connection.reader(REREAD)
            self._task = asyncio.create_task(self._run(reader), name="streams-queue listener")
        await self._subscribed.wait()

    async def stop(self) -> None:
        """Forget everything."""
        tasks = [task for task in (self._task, *self._tails.values()) if task is not None]
        for task in tasks:
            while not task.done():  # `asyncio.wait_for` of Python 3.11, used by redis-py, may swallow a cancellation
                task.cancel()
                await asyncio.wait([task], timeout=0.1)
        self._task = None
        self._hearers.clear()

    def hear(self, id: str, hear: Hear) -> None:
        """Call `hear` for each status of the message from now on, up to its final one."""
        self._hearers.setdefault(id, []).append(hear)

    def forget(self, id: str, hear: Hear) -> None:
        """Call this one no more."""
        hearers = self._hearers.get(id, [])
        if hear in hearers:
            hearers.remove(hear)
        if not hearers:
            self._hearers.pop(id, None)
            self._seen.pop(id, None)

    async def look(self, id: str) -> Event | None:
        """How the message stands now; None when nothing is known of it. Its next events come to this listener."""
        (found,) = await self._transitions.watch(self.channel, [id])
        return None if found is None else Event(id, *found)

    def dispatch(self, event: Event) -> None:
        """Hand an event to those who hear that message."""
        hearers = self._hearers.get(event.id)
        if hearers is None:
            return
        if event.status in FINAL:
            del self._hearers[event.id]
            self._seen.pop(event.id, None)
        else:
            self._seen[event.id] = event.status
        before = self._tails.get(event.id)
        task = asyncio.create_task(self._hand_over(event, tuple(hearers), before))
        self._tails[event.id] = task
        task.add_done_callback(lambda done: self._tails.pop(event.id) if self._tails.get(event.id) is done else None)

    async def _hand_over(self, event: Event, hearers: tuple[Hear, ...], before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        for hear in hearers:
            try:
                await hear(event)
            except Exception:
                logger.exception("a callback failed at status %s of message %s", event.status.value, event.id)

    async def _run(self, reader: Any) -> None:
        warned = False
        while True:
            try:
                await self._hear_events(reader)
            except StreamsQueueError as error:
                if not warned:
                    logger.warning("events are not heard at present, their states are read again later: %s", error)
                warned = True
                self._subscribed.set()  # whoever starts now is served by reading the state
                await asyncio.sleep(1.0)

    async def _hear_events(self, reader: Any) -> None:
        with translated():
            async with reader.pubsub() as channel:
                await channel.subscribe(self.channel)
                self._subscribed.set()
                loop = asyncio.get_running_loop()
                reread_at = loop.time()  # at once: events were missed when the connection was broken
                while True:
                    if loop.time() >= reread_at:
                        await self._reread()
                        reread_at = loop.time() + REREAD
                    received = await channel.get_message(ignore_subscribe_messages=True, timeout=REREAD / 5)
                    if received is not None:
                        self._received(received["data"])

    def _received(self, data: bytes) -> None:
        try:
            id, status, detail = data.split(b"\n", 2)
            event = Event(id.decode(errors="surrogateescape"), Status(status.decode()), detail)
        except ValueError:
            logger.warning("not an event of ours on channel %s", self.channel)
            return
        self.dispatch(event)

    async def _reread(self) -> None:
        ids = list(itertools.islice(self._hearers, BATCH))
        for id, found in zip(ids, await self._transitions.watch(self.channel, ids), strict=True):
            if id in self._hearers:
                self._hearers[id] = self._hearers.pop(id)  # to the end: the others have their turn first
            if found is not None:
                self._untraced.discard(id)
                if found[0] is not self._seen.get(id, Status.QUEUED):
                    self.dispatch(Event(id, *found))
            elif id in self._untraced:
                self._untraced.discard(id)
                self.dispatch(Event(id, Status.EXPIRED, b""))
            else:
                # It may be between two places for a moment, or its enqueue on the way: believe it the second time.
                self._untraced.add(id)
