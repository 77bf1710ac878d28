"""`streams-queue bench`: how fast a server of the user's own is with a queue of ours, which is removed afterwards."""

import asyncio
import secrets
import signal
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Sized
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import msgspec
import typer

from streams_queue.cli import loop
from streams_queue.cli.options import EXIT_CODES, Json, Url, Yes
from streams_queue.cli.output import confirm, print_facts, print_json, progress, remark
from streams_queue.cli.terminal import FAILED, LogLevel, fail, fail_by, log_to_stderr
from streams_queue.errors import StreamsQueueError
from streams_queue.queue import Queue
from streams_queue.settings import Address, Settings
from streams_queue.translation import translated
from streams_queue.worker import Worker

EPILOG = f"""\
\b
Examples:
  streams-queue bench --url redis://localhost:6379/0
  streams-queue bench --messages 100000 --concurrency 250
  streams-queue bench --url embedded:// --json

\b
It asks first, and says how many messages it will put where: under a prefix of
its own, which nothing else uses. They are worked on in this process and
removed, after Ctrl-C too. The server is busy meanwhile: other users of it
notice. Measure from the machine that the workers will run on.

{EXIT_CODES}"""

CALLERS = 32
"""Callers that enqueue side by side."""

_BATCH = 1000
_SAMPLES = 100
_SETTLED = 0.02
"""Seconds after which an idle worker waits in its read again."""


class Measured(msgspec.Struct, kw_only=True):
    """What was found, as its JSON has it."""

    messages: int
    payload_bytes: int
    concurrency: int
    enqueue_many_per_second: float = 0.0
    enqueue_per_second: float = 0.0
    """From 32 callers."""
    finished_per_second: float = 0.0
    server_cpu: float | None = None
    """Of one core, while messages were finished; None where the server does not tell."""
    round_trip: float = 0.0
    """Seconds, median."""
    reaction: float = 0.0
    """Seconds from `enqueue` to the start of the handler on an idle queue, median."""
    reaction_round_trips: float = 0.0


def bench(
    url: Url = None,
    messages: Annotated[int, typer.Option(min=100, metavar="N", help="How many are enqueued and finished.")] = 20_000,
    concurrency: Annotated[int, typer.Option(min=1, metavar="N", help="Handlers that run at the same time.")] = 100,
    payload_bytes: Annotated[int, typer.Option(min=1, max=1 << 20, metavar="N", help="Size of a payload.")] = 100,
    as_json: Json = False,
    yes: Yes = False,
) -> None:
    """Measure a server: enqueue, finish and remove messages of this command's own."""
    log_to_stderr(LogLevel.ERROR)
    measured = Measured(messages=messages, payload_bytes=payload_bytes, concurrency=concurrency)
    try:
        queue = Queue(f"{{streams-queue-bench-{secrets.token_hex(4)}}}", url=url)  # one slot on Cluster
        _announce(queue.settings, queue.keys.prefix, measured, yes=yes)
        done = loop.run(_run(_Bench(queue, measured)))
    except StreamsQueueError as error:
        fail_by(error)
    except ExceptionGroup as group:
        fail_by(_only(group))
    if not done:
        fail("interrupted; what it had written is removed", FAILED)
    if as_json:
        print_json(msgspec.to_builtins(measured))
    else:
        print_facts(list(_facts(measured, queue.settings.display)))


def _announce(settings: Settings, prefix: str, wanted: Measured, *, yes: bool) -> None:
    if settings.address == Address("embedded"):
        return  # nobody else's
    what = (
        f"put {wanted.messages:,} messages of {wanted.payload_bytes:,} bytes under {prefix} on {settings.display}, "
        "work on them and remove them"
    )
    confirm(what, yes=yes)
    remark(f"this will {what}")


def _facts(found: Measured, server: str) -> Iterator[tuple[str, str]]:
    yield "server", server
    yield "messages", f"{found.messages:,} of {found.payload_bytes:,} bytes"
    yield "enqueue_many", f"{found.enqueue_many_per_second:,.0f}/s"
    yield f"enqueue, {CALLERS} callers", f"{found.enqueue_per_second:,.0f}/s"
    yield "finished", f"{found.finished_per_second:,.0f}/s, {found.concurrency} at a time"
    if found.server_cpu is not None:
        yield "server meanwhile", f"{found.server_cpu:.0%} of a core"
    yield "round trip", f"{found.round_trip * 1e6:,.0f} µs"
    yield (
        "enqueue to handler",
        f"{found.reaction * 1e6:,.0f} µs on an idle queue, {found.reaction_round_trips:.1f} trips",
    )


def _only(group: ExceptionGroup[Exception]) -> StreamsQueueError:
    """The error of ours that a task group raised; whatever else is in it is raised."""
    ours, others = group.split(StreamsQueueError)
    if ours is None or others is not None:
        raise group
    error: Exception = ours
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, StreamsQueueError)
    return error


async def _run(bench: "_Bench") -> bool:
    """Measure; False where a signal cut it short. What was written is removed in any case."""
    running = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)

    def interrupted() -> None:
        scope.cancel()
        for number in signals:
            running.remove_signal_handler(number)  # a second one ends it at once

    with anyio.CancelScope() as scope:
        for number in signals:
            running.add_signal_handler(number, interrupted)
        async with bench.queue:
            try:
                await bench.measure()
            finally:
                with anyio.CancelScope(shield=True):
                    await bench.remove()
    return not scope.cancelled_caught


class _Bench:
    """One measurement, and all that it has put on the server."""

    def __init__(self, queue: Queue[dict[str, Any]], measured: Measured) -> None:
        self.queue = queue
        self.measured = measured
        self._payload = {"text": "x" * measured.payload_bytes}
        self._ids: list[str] = []
        self._starts: list[float] = []
        """When each handler started."""
        self._started = asyncio.Event()

    async def measure(self) -> None:
        by_callers = self.measured.messages // 2
        await self._enqueue_from_callers(by_callers)
        await self._enqueue_in_batches(self.measured.messages - by_callers)
        worker = Worker(self.queue, concurrency=self.measured.concurrency)
        worker.handler(self._handle)
        async with anyio.create_task_group() as working:
            working.start_soon(worker.run)
            await self._finish()
            await self._react()
            worker.stop()

    async def remove(self) -> None:
        """Delete every key of it, by name: a scan would walk through everything else on the server."""
        keys = self.queue.keys
        names = [*keys.house, keys.maintainer]
        names += [name(id) for id in self._ids for name in (keys.message, keys.lock, keys.done)]
        with progress("remove", len(names), printing=False) as advance:
            for first in range(0, len(names), _BATCH):
                batch = names[first : first + _BATCH]
                with translated(f"keys that begin with {keys.prefix} may be left: "):
                    await self.queue.connection.client.execute_command("DEL", *batch)
                advance(len(batch))

    # ---- enqueueing: what is under way when a signal comes has to be known, to be removed

    async def _enqueue_from_callers(self, count: int) -> None:
        numbers = iter(range(count))

        async def caller() -> None:
            for _ in numbers:
                await self._enqueue()

        async with _shown(f"enqueue, {CALLERS} callers", count, self._ids):
            began = time.perf_counter()
            async with anyio.create_task_group() as callers:
                for _ in range(CALLERS):
                    callers.start_soon(caller)
            self.measured.enqueue_per_second = count / (time.perf_counter() - began)

    async def _enqueue(self) -> None:
        with anyio.CancelScope(shield=True):
            self._ids.append((await self.queue.enqueue(self._payload)).id)
        await anyio.lowlevel.checkpoint_if_cancelled()

    async def _enqueue_in_batches(self, count: int) -> None:
        async with _shown("enqueue_many", count, self._ids):
            began = time.perf_counter()
            for first in range(0, count, _BATCH):
                with anyio.CancelScope(shield=True):
                    receipts = await self.queue.enqueue_many([self._payload] * min(_BATCH, count - first))
                    self._ids += [receipt.id for receipt in receipts]
                await anyio.lowlevel.checkpoint_if_cancelled()
            self.measured.enqueue_many_per_second = count / (time.perf_counter() - began)

    # ---- working

    async def _handle(self, _: Any) -> None:
        self._starts.append(time.perf_counter())
        if len(self._starts) >= self.measured.messages:
            self._started.set()

    async def _finish(self) -> None:
        found = self.measured
        async with _shown("finish", found.messages, self._starts):
            before, began = await self._server_seconds(), time.perf_counter()
            await self._started.wait()
            after, took = await self._server_seconds(), time.perf_counter() - began
        found.finished_per_second = (found.messages - 1) / (self._starts[-1] - self._starts[0])
        if before is not None and after is not None:
            found.server_cpu = (after - before) / took

    async def _server_seconds(self) -> float | None:
        """Processor time that the server has used so far."""
        info = await self.queue.connection.ask("INFO", "cpu", near=self.queue.keys.main)
        return info["used_cpu_user"] + info["used_cpu_sys"] if info else None

    async def _react(self) -> None:
        """The worker being idle: how soon does it start?"""
        found, trips, reactions = self.measured, list[float](), list[float]()
        async with _shown("react", _SAMPLES, reactions):
            for _ in range(_SAMPLES):
                await anyio.sleep(_SETTLED)
                began = time.perf_counter()
                await self.queue.connection.ask("PING", near=self.queue.keys.main)
                trips.append(time.perf_counter() - began)
                await anyio.sleep(_SETTLED)
                self._started.clear()
                began = time.perf_counter()
                await self._enqueue()
                await self._started.wait()
                reactions.append(self._starts[-1] - began)
        found.round_trip, found.reaction = statistics.median(trips), statistics.median(reactions)
        found.reaction_round_trips = found.reaction / found.round_trip


@asynccontextmanager
async def _shown(what: str, total: int, done: Sized) -> AsyncIterator[None]:
    """A bar for what is added to `done`, looked at ten times a second: a call for each would be measured, too."""
    before = len(done)
    with progress(what, total, printing=False) as advance:

        async def follow() -> None:
            shown = 0
            while True:
                await anyio.sleep(0.1)
                advance(len(done) - before - shown)
                shown = len(done) - before

        async with anyio.create_task_group() as following:
            following.start_soon(follow)
            yield
            following.cancel_scope.cancel()
