"""What happened, written down outside Redis by everybody who took part, and whether it adds up.

Each record is one line, appended with one write: it is there whole or not at all, also after kill -9.
"""

import contextlib
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

Event = Literal["attempted", "accepted", "reported", "started", "done", "failed", "cancelled", "killed", "dead"]


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line of the ledger."""

    event: Event
    id: str = ""
    status: str = ""
    """What the status callback was told."""
    delivery: str = ""
    pid: int = 0
    start: float = 0.0
    end: float = 0.0


class Ledger:
    """The file, as those who write to it know it."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, event: Event, *, id: str = "", status: str = "", pid: int = 0) -> None:
        """Append a record."""
        self._append(Record(event=event, id=id, status=status, pid=pid))

    @contextlib.contextmanager
    def run(self, id: str, delivery: str) -> Iterator[None]:
        """Append the beginning and the end of one run of a handler."""
        record = Record(event="started", id=id, delivery=delivery, pid=os.getpid(), start=time.time())
        self._append(record)
        event: Event = "cancelled"
        try:
            yield
            event = "done"
        except Exception:
            event = "failed"
            raise
        finally:
            record.event, record.end = event, time.time()
            self._append(record)

    def _append(self, record: Record) -> None:
        os.write(self._file, msgspec.json.encode(record) + b"\n")


class Account:
    """The records summed up, so far."""

    def __init__(self) -> None:
        self.attempted = 0
        self.accepted: Counter[str] = Counter()
        """Ids, each with the number of calls that it was the answer to."""
        self.runs: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.running: defaultdict[int, list[str]] = defaultdict(list)
        """What each process works on."""
        self.finished: Counter[int] = Counter()
        """Runs that each process came to the end of."""
        self.status: dict[str, str] = {}
        """What the callbacks were told last."""
        self.killed: list[int] = []
        self.dead: set[str] = set()

    def add(self, record: Record) -> None:
        """Take a record in."""
        id = record.id
        match record.event:
            case "attempted":
                self.attempted += 1
            case "accepted":
                self.accepted[id] += 1
            case "reported":
                self.status[id] = record.status
            case "started":
                self.runs[id] += 1
                self.running[record.pid].append(id)
            case "killed":
                self.killed.append(record.pid)
            case "dead":
                self.dead.add(id)
            case "done" | "failed" | "cancelled":
                self.running[record.pid].remove(id)
                self.finished[record.pid] += 1
                self.done[id] += record.event == "done"
                self.failures[id] += record.event == "failed"


class Reader:
    """Reads a ledger while it grows."""

    def __init__(self, path: Path) -> None:
        self.account = Account()
        self._path = path
        self._offset = 0
        self._decode = msgspec.json.Decoder(Record).decode

    def read(self) -> bool:
        """Take in what has been written since the last time; whether there was anything."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self.account.add(self._decode(line))
        return bool(whole)


class Verdict(NamedTuple):
    """The ledger's bottom line."""

    attempted: int
    joined: int
    """Calls that were answered with the id of an unfinished request of the same user and text."""
    accepted: int
    completed: int
    dead: int
    lost: int
    duplicates: int
    """Runs beyond an id's first that did not follow a failure."""
    allowed: int
    """How many duplicates the promise allows: what the killed workers may have held."""
    faults: Sequence[str]
    """What does not add up; empty when everything does."""


def verdict(account: Account, concurrency: int) -> Verdict:
    """Whether the account adds up.

    Args:
        account: of the whole run, the dead letters at its end included.
        concurrency: how many requests a worker holds at most.
    """
    accepted, completed, dead = set(account.accepted), set(+account.done), account.dead
    lost = accepted - completed - dead
    duplicates = sum(runs - account.failures[id] - (id in completed) for id, runs in account.runs.items())
    allowed = len(account.killed) * concurrency
    calls = account.accepted.total()
    final = {id for id, status in account.status.items() if status in ("completed", "error")}
    untrue = {id for id, status in account.status.items() if status == "completed"} - completed
    faults = {
        "attempted, but not accepted": account.attempted - calls,
        "accepted, but neither completed nor dead": len(lost),
        "both completed and dead": len(completed & dead),
        "run, but never accepted": max(0, len(set(account.runs) - accepted) - (account.attempted - calls)),
        "without a final status callback": len(accepted - final),
        "reported as completed without a run that was": len(untrue),
        "run again without a reason": max(0, duplicates - allowed),
    }
    return Verdict(
        attempted=account.attempted,
        joined=calls - len(accepted),
        accepted=len(accepted),
        completed=len(completed),
        dead=len(dead),
        lost=len(lost),
        duplicates=duplicates,
        allowed=allowed,
        faults=[f"{count} {what}" for what, count in faults.items() if count],
    )
