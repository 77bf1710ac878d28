"""Dead letters as a file: all that are asked for, sent as they are read."""

import csv
import io
import re
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from streams_queue.dashboard.board import Board
from streams_queue.dashboard.pages import filters_in
from streams_queue.dashboard.problems import bad
from streams_queue.dashboard.reading import wanted_of
from streams_queue.dashboard.watch import Watched
from streams_queue.durations import stamp
from streams_queue.letters import Record, Wanted, newest
from streams_queue.redaction import printable
from streams_queue.shown import json_of

COLUMNS = ("id", "died_at", "reason", "attempts", "error", "data")

_FORMULA = re.compile(r"\s*[=+\-@|%\uff1d\uff0b\uff0d\uff20]")
"""How a cell begins that a spreadsheet would calculate, or hand to another program."""


class Export:
    """The handler."""

    def __init__(self, board: Board) -> None:
        self._board = board

    async def dead(self, request: Request) -> Response:
        """Dead letters as CSV, for spreadsheets, or as JSON."""
        watched, asked = self._board.queue(request), request.query_params
        wanted = wanted_of(filters_in(asked))
        match asked.get("format"):
            case "csv":
                return _file(watched, "csv", "text/csv; charset=utf-8", _csv(watched, wanted))
            case "json":
                return _file(watched, "json", "application/json", _json(watched, wanted))
        raise bad("format: csv or json")


def _file(watched: Watched, ending: str, kind: str, text: AsyncIterator[str]) -> Response:
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", watched.prefix)
    return StreamingResponse(
        text,
        media_type=kind,
        headers={"Content-Disposition": f'attachment; filename="{name}-dead-letters.{ending}"'},
    )


async def _csv(watched: Watched, wanted: Wanted) -> AsyncIterator[str]:
    yield _row(COLUMNS)
    async for letters in newest(watched.queue, wanted):
        yield "".join(_row(_cells(letter)) for letter in letters)


async def _json(watched: Watched, wanted: Wanted) -> AsyncIterator[str]:
    yield "["
    separator = "\n"
    async for letters in newest(watched.queue, wanted):
        for letter in letters:
            yield separator + json_of(letter)
            separator = ",\n"
    yield "\n]\n"


def _cells(letter: Record) -> list[str]:
    data = "" if letter["data"] is None else json_of(letter["data"])
    attempts = "" if letter["attempts"] is None else str(letter["attempts"])
    return [letter["id"], stamp(letter["died_at"]), letter["reason"] or "", attempts, letter["error"] or "", data]


def _row(cells: tuple[str, ...] | list[str]) -> str:
    line = io.StringIO()
    csv.writer(line, quoting=csv.QUOTE_ALL).writerow(map(defused, cells))
    return line.getvalue()


def defused(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula, and no terminal for an order."""
    harmless = printable(cell)
    return f"'{harmless}" if _FORMULA.match(harmless) else harmless
