"""How commands answer: tables for people, plain columns where nobody looks on, JSON for scripts.

Whatever is printed here cannot steer a terminal. Secrets are hidden before it comes here: see `shown.py`.
"""

import errno
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NamedTuple, Self

import typer
from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from streams_queue.cli.terminal import FAILED, MISUSED, fail
from streams_queue.redaction import printable
from streams_queue.shown import json_of

Record = Mapping[str, Any]
"""One line of an answer, as its JSON has it."""


def say(line: str) -> None:
    """Print one line."""
    _write(printable(line) + "\n")


def remark(line: str) -> None:
    """Print one line beside the answer, on stderr."""
    typer.echo(printable(line), err=True)


def print_json(value: Any) -> None:
    """Print one JSON document."""
    _write(json_of(value) + "\n")


def _write(text: str) -> None:
    # What the terminal's encoding lacks is escaped, not a crash.
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise BrokenPipeError(errno.EPIPE, "the terminal is closed") from error  # ends the command without a word


class Column(NamedTuple):
    """A column of a listing: its heading, and what it shows of a record."""

    heading: str
    text: Callable[[Record], str]
    right: bool = False
    cut: bool = False
    """Cut short where a terminal is too narrow, instead of going on in the next line."""


class Listing:
    """Records that come in pages, each printed at once. Used as a context; with `as_json` it is one array."""

    def __init__(self, columns: Sequence[Column], *, as_json: bool) -> None:
        self._columns = columns
        self._as_json = as_json
        self._widths: list[int] = []
        self.length = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        # After an error the array stays open: a reader must not take it for all there is.
        if self._as_json and kind is None:
            _write("\n]\n" if self.length else "[]\n")

    def add(self, records: Sequence[Record]) -> None:
        """Print the next ones."""
        if not records:
            return
        if self._as_json:
            _write(("[\n" if self.length == 0 else ",\n") + ",\n".join(map(json_of, records)))
        else:
            rows = [[printable(column.text(record)) for column in self._columns] for record in records]
            if sys.stdout.isatty():
                console().print(self._table(rows))
            else:
                self._print_plain(rows)
        self.length += len(records)

    def _table(self, rows: Sequence[Sequence[str]]) -> Table:
        table = Table(box=box.SIMPLE_HEAD)
        for column in self._columns:
            table.add_column(
                Text(column.heading),
                justify="right" if column.right else "left",
                no_wrap=column.cut,
                overflow="ellipsis" if column.cut else "fold",
            )
        for row in rows:
            table.add_row(*map(Text, row))
        return table

    def _print_plain(self, rows: Sequence[Sequence[str]]) -> None:
        lines = list(rows)
        if not self._widths:
            lines.insert(0, [column.heading for column in self._columns])
            self._widths = [max(map(cell_len, cells)) for cells in zip(*lines, strict=True)]
        _write("".join(self._plain_line(line) + "\n" for line in lines))

    def _plain_line(self, cells: Sequence[str]) -> str:
        padded = (
            (pad + cell) if column.right else (cell + pad)
            for cell, pad, column in zip(cells, self._padding(cells), self._columns, strict=True)
        )
        return "  ".join(padded).rstrip()

    def _padding(self, cells: Sequence[str]) -> Iterator[str]:
        return (" " * (width - cell_len(cell)) for cell, width in zip(cells, self._widths, strict=True))


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print names and values, a line each; a value of several lines stays in its column."""
    if sys.stdout.isatty():
        console().print(facts_table(facts))
        return
    cleaned = [(printable(name), _printable_lines(value)) for name, value in facts]
    width = max(cell_len(name) for name, _ in cleaned) + 2
    for name, value in cleaned:
        first, *more = value.split("\n")
        _write(f"{name}{' ' * (width - cell_len(name))}{first}\n" + "".join(f"{' ' * width}{line}\n" for line in more))


def facts_table(facts: Sequence[tuple[str, str]]) -> RenderableType:
    """Names and values as a terminal shows them."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True, overflow="ellipsis")
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(Text(printable(name)), Text(_printable_lines(value)))
    return table


def _printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def console() -> Console:
    """Standard output, with nothing in what is printed taken for markup."""
    return Console(highlight=False, markup=False, emoji=False)


_OUTCOMES = (Column("id", lambda row: row["id"]), Column("outcome", lambda row: row["outcome"]))


@contextmanager
def outcomes_of(*, as_json: bool) -> Iterator[Callable[[Sequence[str], Sequence[str]], None]]:
    """A listing of what became of each id; yields what adds ids and their outcomes to it."""
    with Listing(_OUTCOMES, as_json=as_json) as listing:
        yield lambda ids, outcomes: listing.add(
            [{"id": id, "outcome": outcome} for id, outcome in zip(ids, outcomes, strict=True)]
        )


@contextmanager
def progress(what: str, total: int | None, *, printing: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr while it lasts, where that is a terminal; yields what moves it on.

    There is none where the command is `printing` to the same terminal meanwhile.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not sys.stderr.isatty() or (printing and sys.stdout.isatty())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


def check_can_ask(what: str, *, yes: bool) -> None:
    """End the command where it would have to ask and nobody is there."""
    if not yes and not sys.stdin.isatty():
        fail(f"this would {what}, and nobody can be asked here: add --yes to do it", MISUSED)


def confirm(what: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone, such as ``remove 3 messages``; ends the command on a no."""
    check_can_ask(what, yes=yes)
    if not yes and not typer.confirm(printable(f"Really {what}?"), err=True):
        fail("not done", FAILED)
