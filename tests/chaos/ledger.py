"""What happened, written down outside Redis: one short line an event, appended by every process.

``attempted ID``, ``accepted ID`` by who enqueues; ``start``, ``end``, ``raised``, ``cancelled`` by handlers; ``gone``
where a process was killed. A line is ``WORD ID DELIVERY PID TIME``; the time is CLOCK_MONOTONIC, one for all processes.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ENQUEUED = ("attempted", "accepted")
ENDS = ("end", "raised", "cancelled")


class Entry(NamedTuple):
    word: str
    id: str
    delivery: int
    pid: int
    at: float


class Run(NamedTuple):
    """One call of a handler; `how` is the word it ended with, None while it runs or where its process died."""

    id: str
    delivery: int
    pid: int
    start: float
    end: float | None
    how: str | None


class Ledger:
    """The file, to append to and to read on in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600)
        self._read_to = 0
        self._entries: list[Entry] = []
        self._count: dict[str, int] = defaultdict(int)

    def write(self, word: str, ids: Iterable[str], delivery: int = 0, pid: int | None = None) -> None:
        """Append a line for each id, in one write."""
        tail = f"{delivery} {pid or os.getpid()} {time.monotonic():.6f}\n"
        os.write(self._file, "".join(f"{word} {id} {tail}" for id in ids).encode())

    def close(self) -> None:
        os.close(self._file)

    def entries(self) -> list[Entry]:
        """All lines so far."""
        size = os.fstat(self._file).st_size
        data = os.pread(self._file, size - self._read_to, self._read_to)
        whole = data[: data.rfind(b"\n") + 1]
        self._read_to += len(whole)
        for line in whole.decode().splitlines():
            word, id, delivery, pid, at = line.split()
            self._entries.append(Entry(word, id, int(delivery), int(pid), float(at)))
            self._count[word] += 1
        return self._entries

    def count(self, word: str) -> int:
        """How many lines begin with the word."""
        self.entries()
        return self._count[word]

    def ids(self, word: str) -> set[str]:
        return {entry.id for entry in self.entries() if entry.word == word}

    def between(self, start: float, end: float = float("inf"), *words: str) -> set[str]:
        """Ids of which something was written down in this time: one of the words, or anything."""
        return {e.id for e in self.entries() if start < e.at < end and (not words or e.word in words)}

    def runs(self) -> list[Run]:
        """Every call of a handler, in the order of their starts."""
        started: dict[tuple[str, int, int], Entry] = {}
        ended: dict[tuple[str, int, int], Entry] = {}
        for entry in self.entries():
            key = (entry.id, entry.delivery, entry.pid)
            if entry.word == "start":
                started[key] = entry
            elif entry.word in ENDS:
                ended[key] = entry
        runs = []
        for key, entry in started.items():
            end = ended.get(key)
            runs.append(Run(*key, entry.at, end and end.at, end and end.word))
        return runs

    def runs_of(self, id: str) -> list[Run]:
        return [run for run in self.runs() if run.id == id]
