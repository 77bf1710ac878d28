"""Looks at the queue and at the ledger, over and over, and shows both."""

import asyncio
import time
from typing import Any

from streams_queue import Queue
from streams_queue.cli.demo.ledger import Reader
from streams_queue.cli.demo.processes import Workers
from streams_queue.cli.demo.stage import Stage
from streams_queue.cli.demo.view import Counts, Sample, Screen, WorkerLine
from streams_queue_compat.chat_api_queue import get_queue_position

_EVERY = 0.1


class Watch:
    """What is known at present: the account from the ledger, the counts from the queue."""

    def __init__(self, queue: Queue[dict[str, Any]], stage: Stage, workers: Workers, screen: Screen) -> None:
        self._queue = queue
        self._reader = Reader(stage.ledger)
        self._workers = workers
        self._screen = screen
        self.account = self._reader.account
        self.counts = Counts()
        self.samples: dict[str, str] = {}
        """Requests to follow: ids and names."""
        self.progress_at = time.monotonic()
        """When there was something new."""

    async def run(self) -> None:
        """Look and show until cancelled."""
        while True:
            await self.look()
            await self.show()
            await asyncio.sleep(_EVERY)

    async def look(self) -> None:
        """Learn how things stand."""
        stats = await self._queue.stats()
        if self._reader.read():
            self.progress_at = time.monotonic()
        self.counts = Counts(
            waiting=stats.main - stats.processing,
            working=stats.processing,
            retry=stats.retry,
            dead=stats.dead,
            done=len(+self.account.done),
        )

    async def show(self) -> None:
        """Show how things stand."""
        samples = [
            Sample(name, await get_queue_position(id), self.account.status.get(id, ""))
            for id, name in list(self.samples.items())  # the feeder adds to it meanwhile
        ]
        self._screen.show(self.counts, samples, [self._line(pid) for pid in self._workers.pids])

    def _line(self, pid: int) -> WorkerLine:
        account = self.account
        return WorkerLine(pid, len(account.running[pid]), account.finished[pid], pid in self._workers.killed)
