"""The demo as a person sees it: a live table in a terminal, plain lines elsewhere."""

import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from streams_queue.cli.demo.ledger import Verdict
from streams_queue.redaction import printable

_EVENTS = 7
_LINE_EVERY = 1.0
_RATE_OVER = 3.0


class Counts(NamedTuple):
    """How many requests stand where."""

    waiting: int = 0
    working: int = 0
    retry: int = 0
    dead: int = 0
    done: int = 0


class Sample(NamedTuple):
    """One request that is followed through the queue."""

    name: str
    position: int
    """-1 when it stands in no queue."""
    status: str


class WorkerLine(NamedTuple):
    """One worker process."""

    pid: int
    working: int
    finished: int
    killed: bool


class Screen:
    """Shows counts, a few requests, the workers, and what happened. Used as a context."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._began = time.monotonic()
        self._events: deque[str] = deque(maxlen=_EVENTS)
        self._rate = _Rate()
        self._line_at = 0.0

    def __enter__(self) -> Self:
        if self._live is None:
            self._console.print(self._title, markup=False, highlight=False)
        else:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    def say(self, event: str) -> None:
        """Something happened."""
        line = f"{self.seconds:5.1f} s  {printable(event)}"
        self._events.append(line)
        if self._live is None:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(self, counts: Counts, samples: Sequence[Sample], workers: Sequence[WorkerLine]) -> None:
        """How things stand."""
        rate = self._rate.of(self.seconds, counts.done)
        if self._live is not None:
            self._live.update(self._picture(counts, rate, samples, workers), refresh=True)
        elif self.seconds >= self._line_at:
            self._line_at = self.seconds + _LINE_EVERY
            words = "  ".join(f"{name} {value}" for name, value in counts._asdict().items())
            places = ", ".join(f"{sample.name} {sample.position}" for sample in samples if sample.position > 0)
            self._console.print(
                f"{self.seconds:5.1f} s  {words}  rate {rate:.0f}/s" + (f"  position: {places}" if places else ""),
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip

    def _picture(
        self, counts: Counts, rate: float, samples: Sequence[Sample], workers: Sequence[WorkerLine]
    ) -> RenderableType:
        side_by_side = Table.grid(padding=(0, 3))
        side_by_side.add_row(_samples(samples), _workers(workers))
        events = Text("\n".join(self._events), no_wrap=True, overflow="ellipsis")
        return Group(Text(self._title, style="bold"), _counts(counts, rate), side_by_side, events)


class _Rate:
    """Requests done a second, over the last few seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def of(self, now: float, done: int) -> float:
        self._seen.append((now, done))
        while now - self._seen[0][0] > _RATE_OVER:
            self._seen.popleft()
        then, before = self._seen[0]
        return (done - before) / (now - then) if now > then else 0.0


def _counts(counts: Counts, rate: float) -> Table:
    table = Table(min_width=60)
    styles = {"working": "cyan", "retry": "yellow", "dead": "red", "done": "green"}
    for name in (*Counts._fields, "rate"):
        table.add_column(name, justify="right", style=styles.get(name, ""))
    table.add_row(*map(str, counts), f"{rate:.0f}/s")
    return table


def _samples(samples: Sequence[Sample]) -> Table:
    table = Table(min_width=34)
    table.add_column("request")
    table.add_column("position", justify="right")
    table.add_column("status", min_width=10)
    for sample in samples:
        table.add_row(sample.name, str(sample.position) if sample.position > 0 else "-", sample.status)
    return table


def _workers(workers: Sequence[WorkerLine]) -> Table:
    table = Table()
    table.add_column("worker")
    table.add_column("working", justify="right", min_width=9)
    table.add_column("finished", justify="right")
    for worker in workers:
        working = Text("kill -9", style="red") if worker.killed else Text(str(worker.working))
        table.add_row(f"pid {worker.pid}", working, str(worker.finished))
    return table


def print_ledger(console: Console, verdict: Verdict, path: str) -> None:
    """The bottom line, and whether it adds up."""
    notes = {
        "accepted": f"{verdict.joined} more were a waiting request once again" if verdict.joined else "",
        "duplicates": f"runs again after kill -9; at most {verdict.allowed} are in order",
    }
    table = Table(title="ledger, kept outside Redis", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for name in ("attempted", "accepted", "completed", "dead", "lost", "duplicates"):
        table.add_row(name, str(getattr(verdict, name)), notes.get(name, ""))
    console.print(table)
    console.print(path, markup=False, highlight=False, soft_wrap=True)
    if verdict.faults:
        console.print(f"It does not add up: {'; '.join(verdict.faults)}.", style="red", highlight=False)
    else:
        console.print(
            f"It adds up: {verdict.completed} completed + {verdict.dead} dead = {verdict.accepted} accepted.",
            style="green", highlight=False,
        )  # fmt: skip
