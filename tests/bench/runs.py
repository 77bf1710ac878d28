"""The server under measurement, and programs run against it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import redis

import servers
from bench.peers import OURS, Peer

SERVER = "redis-8.2"
"""Built with jemalloc, as most servers in production are; the embedded one uses the C library's allocator."""

PATIENCE = 300.0
"""Seconds after which a program is given up."""


class Failed(Exception):
    """A program did not do what it was to do; the text says what it said."""


class Options(NamedTuple):
    """What `make bench ARGS=...` may choose."""

    messages: int
    pairs: int
    bytes: int


class Run(NamedTuple):
    """What came of one run.

    Attributes:
        rate: messages a second.
        share: of a core that the server used meanwhile.
        worker: processor time of the worker for one message, in seconds.
        server: that of the server.
    """

    rate: float
    share: float
    worker: float
    server: float


class Program:
    """A program in a process of its own, and what it says."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._command = command
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `kill`)
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **environment},
            text=True,
        )
        self._watchdog = threading.Timer(PATIENCE, self._process.kill)
        self._watchdog.daemon = True
        self._watchdog.start()

    def heard(self) -> dict[str, Any]:
        """The next thing that it says.

        Raises:
            Failed: it ended, or said nothing for too long.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                words: dict[str, Any] = json.loads(line)
                return words
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()
        raise Failed(f"{' '.join(self._command[1:])} ended: {said.rpartition(chr(10))[2][-300:]}")

    def seconds(self) -> float:
        """Processor time that it has used so far, user and system, all of its threads."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ended(self) -> None:
        """Wait until it has ended."""
        self._process.wait(30)

    def kill(self) -> None:
        self._watchdog.cancel()
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()


class Bench:
    """One server, empty, and nobody else's."""

    def __init__(self, url: str, options: Options) -> None:
        self.url = url
        self.options = options
        self.client = redis.Redis.from_url(url, decode_responses=True, protocol=2)
        self.raw = redis.Redis.from_url(url, protocol=2, socket_timeout=60)

    def flush(self) -> None:
        self.client.flushall()

    def url_of(self, database: int) -> str:
        """The same server, another of its databases."""
        return f"{self.url.rpartition('/')[0]}/{database}"

    def fill(self, peer: Peer, count: int, program: str = "fill") -> float:
        """Have it enqueue so many: messages a second."""
        with self.running(peer, program, count) as running:
            return (count - 1) / float(running.heard()["seconds"])

    def work(self, peer: Peer, count: int, database: int = 0) -> Run:
        """Have one worker process finish so many: from the first to the last, its start not counted."""
        with self.running(peer, "work", count, database) as running:
            running.heard()
            server, worker, began = self.server_seconds(), running.seconds(), time.perf_counter()
            seconds = float(running.heard()["seconds"])
            server, worker = self.server_seconds() - server, running.seconds() - worker
            took = time.perf_counter() - began
            if peer is OURS:
                running.ended()  # by itself: nothing is left claimed
        return Run((count - 1) / seconds, server / took, worker / count, server / count)

    @contextlib.contextmanager
    def running(self, peer: Peer, program: str, count: int, database: int = 0) -> Iterator[Program]:
        """A program while it lasts; killed at the end, where it has not ended by itself."""
        arguments = [program, self.url_of(database), str(count), str(self.options.bytes)]
        running = Program([*peer.command(), *arguments], peer.environment)
        try:
            yield running
        finally:
            running.kill()

    def server_seconds(self) -> float:
        """Processor time that the server has used so far, user and system."""
        info: dict[str, Any] = self.client.info("cpu")
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

    def memory(self) -> int:
        """Bytes that the server has in use, once nothing changes any more."""
        before = -1
        while True:
            now: dict[str, Any] = self.client.info("memory")
            if abs(int(now["used_memory"]) - before) < 50_000:
                return int(now["used_memory"])
            before = int(now["used_memory"])
            time.sleep(0.3)

    def command_times(self) -> dict[str, tuple[int, float]]:
        """Calls of each command, and microseconds in it, so far."""
        stats: dict[str, dict[str, Any]] = self.client.info("commandstats")
        return {name.removeprefix("cmdstat_"): (int(row["calls"]), float(row["usec"])) for name, row in stats.items()}


@contextlib.contextmanager
def server_at(url: str | None) -> Iterator[str]:
    """The URL of the server to measure: one of our own, where none was named."""
    if url is not None:
        yield url
        return
    with tempfile.TemporaryDirectory() as directory:
        server = servers.start(SERVER, Path(directory))
        try:
            yield server.url
        finally:
            server.stop()
