"""The lab: a server, queues with their workers as processes, and what a fault is injected into and measured by."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import servers
import setups
from chaos.ledger import Ledger
from chaos.verdict import SECRET, Tally, judge
from helpers import until
from streams_queue import Queue, QueueUnavailable, failpoints, maintenance

BATCH = 500
_OPTIONS = ("delay", "ttl", "priority", "replicas")
TESTS = Path(__file__).parents[1]


class Process:
    """One worker process."""

    def __init__(self, pid: int, lane: Lane, log: Path) -> None:
        self.pid = pid
        self.log = log
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gone: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._lane = lane

    @property
    def alive(self) -> bool:
        return not self.gone.done()

    def kill(self) -> None:
        """As kill -9 does; written down."""
        if self.alive:
            self._lane.ledger.write("gone", ["-"], pid=self.pid)
            self.send(signal.SIGKILL)

    def send(self, number: signal.Signals) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    async def ended(self, seconds: float = 20.0) -> int:
        """Its exit code, negative where a signal ended it."""
        return await asyncio.wait_for(asyncio.shield(self.gone), seconds)

    async def end(self) -> None:
        """Stopped in order; killed where that takes too long."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        try:
            await self.ended()
        except TimeoutError:
            self.kill()
            await self.ended()

    def words(self) -> str:
        """What it wrote to stderr."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def handles(self) -> int:
        """Open file handles, connections among them."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


class Nursery:
    """The process that forks workers, seen from the lab."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._numbers = itertools.count()
        self._born: dict[int, asyncio.Future[int]] = {}
        self._workers: dict[int, Process] = {}
        self._early: dict[int, list[str]] = {}
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def open(cls) -> Self:
        environ = {name: value for name, value in os.environ.items() if name != failpoints.VARIABLE}
        environ |= {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable, "-m", "chaos.nursery",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=environ,
            )
        )  # fmt: skip

    async def worker(self, lane: Lane, log: Path, orders: dict[str, Any], environ: dict[str, str]) -> Process:
        number = next(self._numbers)
        born = self._born[number] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        order = {"number": number, "log": str(log), "orders": orders, "environ": environ}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        pid = await born
        worker = self._workers[pid] = Process(pid, lane, log)
        for word in self._early.pop(pid, []):
            self._tell(pid, word)
        return worker

    async def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
        await self._listening

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            word, first, *rest = line.decode().split()
            if word == "born":
                self._born.pop(int(first)).set_result(int(rest[0]))
            else:
                self._tell(int(first), " ".join([word, *rest]))

    def _tell(self, pid: int, word: str) -> None:
        worker = self._workers.get(pid)
        if worker is None:  # it was quicker than the reader of ``born``
            self._early.setdefault(pid, []).append(word)
        elif word == "ready":
            worker.ready.set_result(None)
        else:
            del self._workers[pid]
            worker.gone.set_result(int(word.removeprefix("gone ")))
            if not worker.ready.done():
                worker.ready.cancel()


class Lane:
    """One queue, its workers and its ledger. Several lanes on one server are runs of a fault side by side."""

    def __init__(self, lab: Lab, name: str, queue: Queue[Any], url: str) -> None:
        self.lab = lab
        self.url = url
        self.name = name
        self.queue = queue
        self.ledger = Ledger(lab.directory / f"{name}.ledger")
        self.workers: list[Process] = []
        self.refused = 0
        """How often an enqueue was refused, and called again."""
        self._ids = itertools.count()

    # ---- messages

    async def enqueue(self, count: int = 1, **payload: Any) -> list[str]:
        """Enqueue so many, again where the server was away; written down before and after."""
        return await self.enqueue_to(self.queue, count, **payload)

    async def enqueue_to(self, queue: Queue[Any], count: int, **payload: Any) -> list[str]:
        """As `enqueue`, by another producer. `delay`, `ttl`, `priority` and `replicas` go to the call, the rest is
        the payload.
        """
        options: dict[str, Any] = {name: payload.pop(name) for name in _OPTIONS if name in payload}
        ids = [f"{self.name}-{next(self._ids)}" for _ in range(count)]
        for batch in _batched(ids):
            self.ledger.write("attempted", batch)
            calls = (self._surely(queue, id, {"n": id, "token": SECRET, **payload}, options) for id in batch)
            await asyncio.gather(*calls)
            self.ledger.write("accepted", batch)
        return ids

    async def _surely(self, queue: Queue[Any], id: str, payload: dict[str, Any], options: dict[str, Any]) -> None:
        deadline = time.monotonic() + 120
        while True:
            try:
                await queue.enqueue(payload, id=id, **options)
            except QueueUnavailable:
                self.refused += 1
                assert time.monotonic() < deadline, f"{id} was not accepted for two minutes"
                await asyncio.sleep(0.05)
            else:
                return

    @contextlib.asynccontextmanager
    async def producing(self, rate: float, **payload: Any) -> AsyncIterator[None]:
        """Four producers, so many messages a second in all, as long as the block lasts."""
        stop = asyncio.Event()

        async def produce() -> None:
            while not stop.is_set():
                await self.enqueue(**payload)
                await asyncio.sleep(4 / rate)

        tasks = [asyncio.create_task(produce()) for _ in range(4)]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    # ---- workers

    async def start(
        self, count: int = 1, *, failpoints: str = "", url: str | None = None, patience: float = 1.0, **orders: Any
    ) -> Process:
        """Start so many workers and wait until they are there; the last of them. `patience`: of their clients."""
        started = [await self._bear(failpoints, url, patience, orders) for _ in range(count)]
        for worker in started:
            await asyncio.wait_for(asyncio.wait([worker.ready]), 30)
        return started[-1]

    async def _bear(self, armed: str, url: str | None, patience: float, orders: dict[str, Any]) -> Process:
        log = self.lab.directory / f"{self.name}-{len(self.workers)}.log"
        orders = {
            "url": url or self.url, "prefix": self.queue.keys.prefix, "ledger": str(self.ledger.path),
            "lease": self.lab.lease, **orders,
        }  # fmt: skip
        told = {failpoints.VARIABLE: armed, "REDIS_TIMEOUT": str(patience)}
        worker = await self.lab.nursery.worker(self, log, orders, told)
        self.workers.append(worker)
        return worker

    @property
    def alive(self) -> list[Process]:
        return [worker for worker in self.workers if worker.alive]

    async def end_workers(self) -> None:
        await asyncio.gather(*(worker.end() for worker in self.alive))

    async def died(self, worker: Process, seconds: float = 20.0) -> None:
        """Wait until a failpoint killed it, and write that down."""
        code = await worker.ended(seconds)
        assert code == -signal.SIGKILL, f"the worker ended with {code} instead of at its failpoint\n{worker.words()}"
        self.ledger.write("gone", ["-"], pid=worker.pid)

    # ---- waiting and judging

    async def started(self, count: int = 1, seconds: float = 20.0) -> None:
        await until(lambda: self.ledger.count("start") >= count, seconds, f"{count} runs in {self.name}")

    async def idle(self, seconds: float = 30.0) -> None:
        """Wait until nothing waits and nothing is being worked on."""

        async def nothing_left() -> bool:
            with contextlib.suppress(QueueUnavailable):
                return await self.queue.length() == 0
            return False

        await until(nothing_left, seconds, f"the end of all work in {self.name}")

    async def done(self, ids: Iterable[str], seconds: float = 20.0) -> list[Any]:
        """Wait for the results of these."""
        return await asyncio.gather(*(self.queue.result(id, timeout=seconds) for id in ids))

    async def judge(self, **allowed: Any) -> None:
        """Check the invariants, and add what was found to the lab's tally."""
        self.lab.tally.add(await judge(self, **allowed))

    async def close(self) -> None:
        await self.end_workers()
        await self.queue.close()
        self.ledger.close()


class Lab:
    """What one scenario works with.

    Args:
        directory: for files.
        server: the name of the server.
        full: all repeats, not a few.
    """

    def __init__(self, directory: Path, server: str, nursery: Nursery, *, full: bool) -> None:
        self.directory = directory
        self.nursery = nursery
        self.full = full
        self.lease = 2.0 if full else 1.0
        self.tally = Tally()
        self.server_name = server
        self._server: servers.Server | None = None
        self._servers: list[servers.Server] = []
        self._company: setups.Cluster | setups.Watched | None = None
        self._companies: list[setups.Cluster | setups.Watched] = []
        self._names = itertools.count()

    @property
    def _noise(self) -> float:
        """Seconds for a busy machine: the full run, which writes its figures down, makes no such allowance."""
        return 0.0 if self.full else 5.0

    @property
    def recovery(self) -> float:
        """Seconds in which what a dead worker held is at work again (I7)."""
        return self.lease + maintenance.INTERVAL + 1.0 + self._noise

    @property
    def after_outage(self) -> float:
        """Seconds in which work goes on after an outage of the server (I7)."""
        return 2 * self.lease + maintenance.INTERVAL + 1.0 + self._noise

    def after_failover(self, down_after: float) -> float:
        """Seconds in which work goes on after the death of a primary that is noticed after `down_after`."""
        return down_after + 5.0 + self._noise

    @property
    def server(self) -> servers.Server:
        """The scenario's server; started when first asked for, unless `serve` did it with arguments."""
        return self._server or self.serve()

    @property
    def lanes(self) -> int:
        """How many runs of a fault that waits go on side by side, at full size. Several servers need the machine, too:
        of ten workers that start at once each took a second, and that is no recovery.
        """
        return 5 if self.server_name in setups.NAMES else 10

    @property
    def rejoining(self) -> float:
        """Seconds for which a Cluster's node that was restarted refuses everybody, by its own rule."""
        return 2.0 if self.server_name == "cluster" else 0.0

    async def in_service(self) -> None:
        """Wait until the server, restarted, refuses nobody."""
        if self.server_name == "cluster":
            await until(lambda: setups.command(self.server, "CLUSTER INFO")["cluster_state"] == "ok")

    @property
    def url(self) -> str:
        """Where queues are."""
        server = self.server
        return self._company.url if self._company else server.url

    def serve(self, *arguments: str) -> servers.Server:
        """Start a server of the scenario's own; it is `server` from now on. Of several, it is the one with the keys."""
        place = self.directory / f"server-{len(self._servers)}"
        if self.server_name in setups.NAMES:
            kind = setups.Cluster if self.server_name == "cluster" else setups.Watched
            self._company = kind(place, *arguments)
            self._companies.append(self._company)
            self._server = self._company.home
            return self._server
        self._server = servers.start(self.server_name, place, *arguments)
        self._servers.append(self._server)
        return self._server

    def judged_by(self, server: servers.Server) -> None:
        """The keys are on this server now."""
        self._server = server

    def size(self, smoke: int, full: int) -> int:
        """How often, by the size that was asked for."""
        return full if self.full else smoke

    @contextlib.asynccontextmanager
    async def lane(self, url: str | None = None, prefix: str = "{}") -> AsyncIterator[Lane]:
        """A queue of its own, on the server or where the URL leads; its prefix is its name, or holds that."""
        name = f"q{next(self._names)}"
        url = url or self.url
        if self.server_name == "cluster":
            prefix = f"{setups.HOME}{prefix}".replace("{b}", "{{b}}")
        async with Queue[Any](prefix.format(name), url=url) as queue:
            lane = Lane(self, name, queue, url)
            try:
                yield lane
            finally:
                await lane.close()

    async def side_by_side(self, lanes: int, each: Callable[[Lane], Awaitable[None]]) -> None:
        """The same in several lanes at once."""

        async def one() -> None:
            async with self.lane() as lane:
                await each(lane)

        async with asyncio.TaskGroup() as group:
            for _ in range(lanes):
                group.create_task(one())

    def close(self) -> None:
        for server in self._servers:
            server.kill()
        for company in self._companies:
            company.stop()


def _batched(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[i : i + BATCH] for i in range(0, len(ids), BATCH)]
