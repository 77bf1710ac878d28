"""The demo's course: feed, kill, requeue, and watch all the time."""

import asyncio
import os
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import Console

from streams_queue import Queue, embedded
from streams_queue.cli.demo import chat, fates
from streams_queue.cli.demo.ledger import Ledger, Reader, Verdict, verdict
from streams_queue.cli.demo.messages import ChatMessage
from streams_queue.cli.demo.processes import CONCURRENCY, Workers, requeue
from streams_queue.cli.demo.stage import Stage
from streams_queue.cli.demo.view import Counts, Sample, Screen, WorkerLine
from streams_queue.errors import ConfigurationError, StreamsQueueError
from streams_queue.settings import Settings
from streams_queue_compat.chat_api_queue import QueuedRequest, enqueue_chat_request, get_queue_position

WORKERS = 3
SAMPLES = 3
FEED_SECONDS = 4.0
LOOK_EVERY = 0.1
PATIENCE = 30.0
"""Seconds without any progress after which the demo waits no longer, and the ledger tells what is missing."""


class Stuck(StreamsQueueError):
    """Nothing happens any more, or a worker ended by itself: the demo is over, and the ledger tells what is missing."""


def server_url() -> str:
    """The server that the environment names, or an embedded one, which lives as long as this process.

    Raises:
        ConfigurationError: an old script could not reach it.
    """
    named = any(os.environ.get(name) for name in ("STREAMS_QUEUE_URL", "REDIS_URL"))
    settings = Settings.resolve(None if named else "embedded://")
    kind = settings.address.kind
    if kind == "embedded":
        return f"unix://{quote(embedded.socket_path(settings.address.path))}"
    if kind in ("single", "unix"):
        return settings.url
    raise ConfigurationError(
        f"{settings.display}: the demo runs a plain Redis script, which needs redis://, rediss:// or unix://; "
        "without a URL the demo starts a server of its own"
    )


async def play(messages: Sequence[ChatMessage], console: Console) -> tuple[Verdict, Path]:
    """Play the demo; the ledger's bottom line, and where it is.

    Raises:
        ConfigurationError, UnsupportedServer, QueueUnavailable: the server cannot be used.
    """
    os.environ["STREAMS_QUEUE_URL"] = url = await asyncio.to_thread(server_url)
    prefix = f"demo-{secrets.token_hex(4)}"
    chat.set_up(prefix)
    stage = Stage(Path(tempfile.mkdtemp(prefix="streams-queue-demo-")))
    stage.set(fates.draw(messages))
    broken_off: list[str] = []
    title = f"streams-queue demo: {len(messages)} chat requests, {WORKERS} worker processes"
    async with temporary_queue(prefix) as queue:
        with Screen(console, title) as screen, Workers(stage, prefix) as workers:
            performance = Performance(messages, queue, stage, workers, screen, url)
            try:
                await performance.run()
            except* StreamsQueueError as group:
                broken_off = [str(reason) for reason in group.exceptions]
            await performance.close()
        found = verdict(performance.account, CONCURRENCY)
        return found._replace(faults=[*broken_off, *found.faults]), stage.ledger


@asynccontextmanager
async def temporary_queue(prefix: str) -> AsyncIterator[Queue[dict[str, Any]]]:
    """A queue of whose keys nothing is left in the end."""
    queue: Queue[dict[str, Any]] = Queue(prefix)
    async with queue:
        try:
            yield queue
        finally:
            client = queue.connection.client
            async for key in client.scan_iter(match=f"{prefix}:*", count=1000):
                await client.delete(key)


class Performance:
    """One run of the demo."""

    def __init__(
        self,
        messages: Sequence[ChatMessage],
        queue: Queue[dict[str, Any]],
        stage: Stage,
        workers: Workers,
        screen: Screen,
        url: str,
    ) -> None:
        self._messages = messages
        self._queue = queue
        self._stage = stage
        self._workers = workers
        self._screen = screen
        self._url = url
        self._ledger = Ledger(stage.ledger)
        self._reader = Reader(stage.ledger)
        self._samples: dict[str, str] = {}
        self._counts = Counts()
        self._fed = False
        self._progress_at = time.monotonic()
        self.account = self._reader.account

    async def run(self) -> None:
        """From the first request to the last.

        Raises:
            Stuck: it does not get that far.
        """
        for _ in range(WORKERS):
            self._workers.start()
        self._screen.say(f"{WORKERS} workers started, each for {CONCURRENCY} requests at a time")
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch())
            feeding = group.create_task(self._feed())
            await self._story()
            await feeding
            watching.cancel()

    async def close(self) -> None:
        """Write down the dead letters, and look for the last time."""
        for letter in await self._queue.dead_letters.list(limit=len(self._messages)):
            self._ledger.write("dead", id=letter.id)
        await self._watch_once()

    async def _feed(self) -> None:
        accepted = set()
        every = max(1, len(self._messages) // (SAMPLES + 1))
        for number, message in enumerate(self._messages, 1):
            self._ledger.write("attempted")
            id = await enqueue_chat_request(**message.arguments(), status_callback=self._on_status)
            if id is not None:
                self._ledger.write("accepted", id=id)
                accepted.add(id)
                if number % every == 0 and len(self._samples) < SAMPLES:
                    self._samples[id] = f"no. {number}"
            await asyncio.sleep(FEED_SECONDS / len(self._messages))
        self._screen.say(f"{len(self._messages)} requests sent, {len(accepted)} accepted")
        self._fed = True

    async def _on_status(self, request: QueuedRequest, status: str, _response: object, _error: str | None) -> None:
        self._ledger.write("reported", id=request.request_id, status=status)

    async def _story(self) -> None:
        await self._until(self._in_the_middle)
        held = self._kill_the_busiest()
        await self._until(lambda: self._taken_over(held))
        self._screen.say(f"the other workers have taken over its {len(held)} requests")
        await self._until(self._settled)
        self._screen.say(f"{self._counts.done} done, {self._counts.dead} dead letters")
        self._stage.repair()
        requeued = await asyncio.to_thread(requeue, self._url, self._queue.keys.prefix)
        self._screen.say(f"back end repaired, {requeued} dead letters requeued by the documented script")
        await self._refresh()
        await self._until(self._settled)
        await self._until(self._reported)
        self._screen.say("all requests are done or dead, and their senders know")

    def _in_the_middle(self) -> bool:
        different = {fates.key(message.user_id, message.message) for message in self._messages}
        return len(+self.account.done) >= len(different) // 3 and any(self.account.running.values())

    def _settled(self) -> bool:
        counts = self._counts
        return self._fed and counts.waiting + counts.working + counts.retry == 0

    def _reported(self) -> bool:
        final = sum(status in ("completed", "error") for status in self.account.status.values())
        return final >= len(self.account.accepted)

    def _taken_over(self, ids: Counter[str]) -> bool:
        return all(self.account.runs[id] > runs for id, runs in ids.items())

    def _kill_the_busiest(self) -> Counter[str]:
        """Kill it; what it held, with the number of runs so far."""
        running = self.account.running
        pid = max(self._workers.pids, key=lambda pid: len(running[pid]))
        self._ledger.write("killed", pid=pid)
        self._workers.kill(pid)
        self._reader.read()
        held = Counter({id: self.account.runs[id] for id in running[pid]})
        self._screen.say(f"kill -9 of worker {pid} while it works on {len(held)} requests")
        return held

    async def _until(self, happened: Callable[[], bool]) -> None:
        """Wait for it.

        Raises:
            Stuck: it will not happen.
        """
        self._progress_at = time.monotonic()
        while not happened():
            for number in self._workers.ended():
                raise Stuck(f"worker {number} ended by itself: see {self._workers.log(number)}")
            if time.monotonic() - self._progress_at > PATIENCE:
                raise Stuck(f"nothing has happened for {PATIENCE:.0f} s: see the logs in {self._stage.directory}")
            await asyncio.sleep(LOOK_EVERY / 2)

    # ---- watching

    async def _watch(self) -> None:
        while True:
            await self._watch_once()
            await asyncio.sleep(LOOK_EVERY)

    async def _watch_once(self) -> None:
        await self._refresh()
        self._screen.show(self._counts, await self._places(), self._worker_lines())

    async def _refresh(self) -> None:
        stats = await self._queue.stats()
        if self._reader.read():
            self._progress_at = time.monotonic()
        self._counts = Counts(
            waiting=stats.main - stats.processing,
            working=stats.processing,
            retry=stats.retry,
            dead=stats.dead,
            done=len(+self.account.done),
        )

    async def _places(self) -> list[Sample]:
        places = []
        for id, name in self._samples.items():
            position = await get_queue_position(id)
            places.append(Sample(name, position if position > 0 else None, self.account.status.get(id, "")))
        return places

    def _worker_lines(self) -> list[WorkerLine]:
        account = self.account
        return [
            WorkerLine(pid, len(account.running[pid]), account.finished[pid], pid in self._workers.killed)
            for pid in self._workers.pids
        ]
