"""The demo's course: feed, kill, recover, requeue; and in the end the ledger."""

import asyncio
import os
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
from rich.console import Console

from streams_queue import Queue, StreamsQueueError
from streams_queue.cli.demo import chat, plan
from streams_queue.cli.demo.ledger import Ledger, Verdict, verdict
from streams_queue.cli.demo.messages import ChatMessage
from streams_queue.cli.demo.processes import CONCURRENCY, Workers, requeue
from streams_queue.cli.demo.server import server_url, temporary_queue
from streams_queue.cli.demo.stage import Stage
from streams_queue.cli.demo.view import Screen
from streams_queue.cli.demo.watch import Watch
from streams_queue_compat.chat_api_queue import QueuedRequest, enqueue_chat_request

WORKERS = 3
SAMPLES = 3
FEED_SECONDS = 4.0
PATIENCE = 30.0
"""Seconds without any progress after which the demo waits no longer, and the ledger tells what is missing."""


class Stuck(StreamsQueueError):
    """What the demo waits for will not happen."""


async def play(messages: Sequence[ChatMessage], console: Console) -> tuple[Verdict, Path]:
    """Play the demo; the ledger's bottom line, and where it is.

    Raises:
        ConfigurationError, UnsupportedServer, QueueUnavailable: the server cannot be used.
    """
    os.environ["STREAMS_QUEUE_URL"] = await asyncio.to_thread(server_url)
    prefix = f"demo-{secrets.token_hex(4)}"
    chat.set_up(prefix)
    title = f"streams-queue demo: {len(messages)} chat requests, {WORKERS} worker processes"
    broken_off: list[str] = []
    async with temporary_queue(prefix) as queue:
        stage = Stage(Path(tempfile.mkdtemp(prefix="streams-queue-demo-")))
        stage.set(plan.draw(messages))
        with Screen(console, title) as screen, Workers(stage, prefix) as workers:
            performance = Performance(messages, queue, stage, workers, screen)
            try:
                await performance.run()
            except* StreamsQueueError as group:
                broken_off = [str(error) for error in group.exceptions]
            found = await performance.close()
    return found._replace(faults=[*broken_off, *found.faults]), stage.ledger


class Performance:
    """One run of the demo."""

    def __init__(
        self,
        messages: Sequence[ChatMessage],
        queue: Queue[dict[str, Any]],
        stage: Stage,
        workers: Workers,
        screen: Screen,
    ) -> None:
        self._messages = messages
        self._queue = queue
        self._stage = stage
        self._workers = workers
        self._say = screen.say
        self._ledger = Ledger(stage.ledger)
        self._watch = Watch(queue, stage, workers, screen)
        self._account = self._watch.account
        self._middle = len({(message.user_id, message.message) for message in messages}) // 3
        self._fed = False

    async def run(self) -> None:
        """From the first request to the last.

        Raises:
            ExceptionGroup: of errors of ours; it did not get that far.
        """
        for _ in range(WORKERS):
            self._workers.start()
        self._say(f"{WORKERS} workers started, each for {CONCURRENCY} requests at a time")
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch.run)
            group.start_soon(self._feed)
            await self._story()
            group.cancel_scope.cancel()

    async def close(self) -> Verdict:
        """Write down the dead letters, look for the last time, and judge."""
        for letter in await self._queue.dead_letters.list(limit=len(self._messages)):
            self._ledger.write("dead", id=letter.id)
        await self._watch.look()
        await self._watch.show()
        return verdict(self._account, CONCURRENCY)

    async def _feed(self) -> None:
        """Send the requests through the documented API, and follow a few of them."""
        every = max(1, len(self._messages) // (SAMPLES + 1))
        for number, message in enumerate(self._messages, 1):
            self._ledger.write("attempted")
            id = await enqueue_chat_request(**message.arguments(), status_callback=self._on_status)
            if id is not None:
                self._ledger.write("accepted", id=id)
                if number % every == 0 and len(self._watch.samples) < SAMPLES:
                    self._watch.samples[id] = f"no. {number}"
            await asyncio.sleep(FEED_SECONDS / len(self._messages))
        self._say(f"{len(self._messages)} requests sent")
        self._fed = True

    async def _on_status(self, request: QueuedRequest, status: str, _response: object, _error: str | None) -> None:
        self._ledger.write("reported", id=request.request_id, status=status)

    async def _story(self) -> None:
        await self._until(self._in_the_middle)
        held = self._kill_the_busiest()
        await self._until(lambda: self._taken_over(held))
        self._say(f"the other workers have taken over its {len(held)} requests")
        await self._until(self._settled)
        self._say(f"{self._watch.counts.done} done, {self._watch.counts.dead} dead letters")
        self._stage.repair()
        requeued = await asyncio.to_thread(requeue, self._queue.keys.prefix)
        self._say(f"back end repaired, {requeued} dead letters requeued by the documented script")
        await self._watch.look()
        await self._until(self._settled)
        await self._until(self._reported)
        self._say("all requests are done or dead, and their senders know")

    def _kill_the_busiest(self) -> Counter[str]:
        """Kill the worker that has most to do; what it held, each with the number of its runs so far."""
        running = self._account.running
        pid = max(self._workers.pids, key=lambda pid: len(running[pid]))
        held = Counter({id: self._account.runs[id] for id in running[pid]})
        self._ledger.write("killed", pid=pid)
        self._workers.kill(pid)
        self._say(f"kill -9 of worker {pid} while it works on {len(held)} requests")
        return held

    # ---- what is waited for

    def _in_the_middle(self) -> bool:
        return len(+self._account.done) >= self._middle and any(self._account.running.values())

    def _taken_over(self, held: Counter[str]) -> bool:
        # One that it had just finished may be completed, or run again.
        return all(self._account.runs[id] > runs or self._account.done[id] for id, runs in held.items())

    def _settled(self) -> bool:
        counts = self._watch.counts
        return self._fed and counts.waiting + counts.working + counts.retry == 0

    def _reported(self) -> bool:
        final = sum(status in ("completed", "error") for status in self._account.status.values())
        return final >= len(self._account.accepted)

    async def _until(self, happened: Callable[[], bool]) -> None:
        """Wait for it.

        Raises:
            Stuck: it will not happen.
        """
        began = time.monotonic()
        while not happened():
            for number in self._workers.ended():
                raise Stuck(f"worker {number} ended by itself: see {self._workers.log(number)}")
            if time.monotonic() - max(began, self._watch.progress_at) > PATIENCE:
                raise Stuck(f"nothing has happened for {PATIENCE:.0f} s: see the logs in {self._stage.directory}")
            await asyncio.sleep(0.05)
