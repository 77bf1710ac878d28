"""The queues that are shown, and a look at all of them every few seconds, however many people watch."""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from streams_queue.connection import Connection
from streams_queue.dashboard.history import History, Sample
from streams_queue.discovery import discover
from streams_queue.errors import ConfigurationError, QueueUnavailable, StreamsQueueError
from streams_queue.named import NamedQueue
from streams_queue.queue import Queue
from streams_queue.settings import Settings

logger = logging.getLogger(__name__)

EVERY = 2.0
"""Seconds from one look to the next."""

MOST_QUEUES = 200
"""Queues that are shown at most, where they are found by themselves."""

_SEARCH_EVERY = 30.0
_SEARCH_SHARE = 50
"""Looking for queues reads the names of all keys: it takes no more than a fiftieth of the time."""


class Watched:
    """A queue that is shown, and what was seen of it."""

    def __init__(self, queue: Queue[dict[str, Any]]) -> None:
        self.queue = queue
        self.history = History()
        self.sample: Sample | None = None
        """The latest look; it stays when the server goes away."""
        self.trouble: str | None = None
        """Why the last look was none."""

    @property
    def prefix(self) -> str:
        """The queue's prefix."""
        return self.queue.keys.prefix

    async def look(self) -> None:
        """Take a look. Raises nothing that a queue may raise: `trouble` says it."""
        try:
            await self.queue.open()
            stats, oldest = await asyncio.gather(self.queue.stats(), self.queue.transitions.oldest())
        except StreamsQueueError as error:
            if self.trouble is None:
                logger.warning("queue %s: %s", self.prefix, error)
            self.trouble = str(error)
            return
        except Exception:  # an answer nobody thought of must not end the watch over the others
            logger.exception("queue %s", self.prefix)
            self.trouble = "it cannot be looked at: the log of the dashboard says why"
            return
        self.sample, self.trouble = Sample(oldest.now, stats, oldest.since), None
        self.history.add(self.sample)


class Watch:
    """Watches queues while its task runs, which begins with the first request and ends with the event loop.

    Args:
        servers: where the queues are. They are looked for on the first; shards may be on all of them.
        prefixes: of the queues; None for all that the database has.
    """

    def __init__(self, servers: Sequence[Settings], prefixes: Sequence[str] | None) -> None:
        self._servers = servers
        self._found = prefixes is None
        self._watched: dict[str, Watched] = {}
        self._task: asyncio.Task[None] | None = None
        self._looked = asyncio.Event()
        self._news = asyncio.Condition()
        self._ending = False
        self._search_at = 0.0
        self.trouble: str | None = None
        """Why queues could not be looked for."""
        self.looks = 0
        """How many looks were taken."""
        for prefix in prefixes or ():
            self._add(prefix)

    @property
    def queues(self) -> list[Watched]:
        """All queues, by name."""
        return [self._watched[prefix] for prefix in sorted(self._watched)]

    def get(self, prefix: str) -> Watched | None:
        """The queue with this prefix, if it is shown."""
        named = self._watched.get(prefix)  # on Redis Cluster its keys may begin with `{prefix}`
        return named or next((watched for watched in self._watched.values() if watched.prefix == prefix), None)

    async def check(self) -> None:
        """Connect once, and raise what stands in the way."""
        connection = Connection(self._servers[0])
        await connection.open()
        await connection.close()

    async def begin(self) -> None:
        """Have the queues watched, and wait for the first look. Harmless when they are."""
        if self._task is None or self._task.done():
            self._looked, self._ending = asyncio.Event(), False
            self._task = asyncio.create_task(self._run(), name="streams-queue dashboard")
        await self._looked.wait()

    async def end(self) -> None:
        """Stop watching, and disconnect."""
        await self.announce_end()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def next_look(self, after: int) -> int | None:
        """Wait until there were more than `after` looks: how many there were, or None when there will be no more."""
        async with self._news:
            await self._news.wait_for(lambda: self.looks > after or self._ending)
        return None if self._ending else self.looks

    async def announce_end(self) -> None:
        """Let go of all who wait for a look."""
        async with self._news:
            self._ending = True
            self._news.notify_all()

    async def _run(self) -> None:
        try:
            while True:
                began = time.monotonic()
                if self._found and began >= self._search_at:
                    await self._search()
                await asyncio.gather(*(watched.look() for watched in self._watched.values()))
                self._looked.set()
                async with self._news:
                    self.looks += 1
                    self._news.notify_all()
                await asyncio.sleep(max(0.1, EVERY - (time.monotonic() - began)))
        finally:
            self._looked.set()  # nobody waits for a look that is not going to come
            await asyncio.gather(*(watched.queue.close() for watched in self._watched.values()))

    async def _search(self) -> None:
        began = time.monotonic()
        connection = Connection(self._servers[0])
        try:
            await connection.open()
            prefixes = await discover(connection)
        except (QueueUnavailable, ConfigurationError) as error:
            self.trouble = str(error)
            return
        finally:
            await connection.close()
        self.trouble = None
        for prefix in self._watched.keys() - set(prefixes):  # it has no keys any more
            await self._watched.pop(prefix).queue.close()
        for prefix in prefixes:
            if prefix not in self._watched and len(self._watched) < MOST_QUEUES:
                self._add(prefix)
        took = time.monotonic() - began
        self._search_at = time.monotonic() + max(_SEARCH_EVERY, _SEARCH_SHARE * took)

    def _add(self, prefix: str) -> None:
        self._watched[prefix] = Watched(NamedQueue(prefix, url=[settings.url for settings in self._servers]))
