"""What the programs under measurement share; the standard library alone, since each runs in its peer's environment.

``python -m bench.programs.with_arq fill URL COUNT BYTES`` and so on: each says what it measured as lines of JSON.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

CALLERS = 32
"""Tasks, or threads, that enqueue side by side."""

BATCH = 1000
"""Messages that one batch call is given; what the library makes of them is its own affair."""


@dataclass(frozen=True)
class Task:
    """What a program is to do."""

    url: str
    count: int
    bytes: int

    def payload(self, number: int) -> dict[str, Any]:
        """The same for everybody: who, which, and so many bytes of text."""
        return {"user": f"user-{number % 1000}", "number": number, "text": "x" * self.bytes}

    def batches(self) -> list[range]:
        """The numbers of the messages, in batches."""
        return [range(first, min(first + BATCH, self.count)) for first in range(0, self.count, BATCH)]


class Finished:
    """Called by the handler for each message: tells when the first and when the last one is done."""

    def __init__(self, total: int, then: Callable[[], Any] = lambda: None) -> None:
        self._total = total
        self._then = then
        self._numbers = itertools.count(1)
        self._began = 0.0

    def __call__(self) -> None:
        number = next(self._numbers)  # one step, for threads too
        if number == 1:
            self._began = time.perf_counter()
            say(event="first")
        elif number == self._total:
            say(event="last", seconds=time.perf_counter() - self._began)
            self._then()


def say(**words: Any) -> None:
    """Tell the harness."""
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


async def from_callers(task: Task, enqueue: Callable[[dict[str, Any]], Awaitable[Any]]) -> None:
    """Have 32 callers enqueue all messages, each its next one as soon as the last is accepted; tell how long it took.

    One message goes before, unmeasured: what is set up at the first call counts for nobody.
    """
    await enqueue(task.payload(0))
    numbers = iter(range(1, task.count))

    async def caller() -> None:
        for number in numbers:
            await enqueue(task.payload(number))

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    say(event="enqueued", seconds=time.perf_counter() - began)


async def in_batches(task: Task, enqueue: Callable[[list[dict[str, Any]]], Awaitable[Any]]) -> None:
    """Enqueue all messages by the batch call, one batch after the other; tell how long it took."""
    first, *rest = [[task.payload(number) for number in batch] for batch in task.batches()]
    await enqueue(first[:1])
    began = time.perf_counter()
    for batch in (first[1:], *rest):
        await enqueue(batch)
    say(event="enqueued", seconds=time.perf_counter() - began)


def main(**programs: Callable[[Task], Any]) -> None:
    """Run the one that the arguments name; coroutine functions in uvloop, where it is installed."""
    name, url, count, size = sys.argv[1:]
    result = programs[name.replace("-", "_")](Task(url, int(count), int(size)))
    if asyncio.iscoroutine(result):
        run(result)


def run(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, in uvloop where it is installed."""
    try:
        import uvloop  # noqa: PLC0415  (not in every environment)
    except ModuleNotFoundError:
        return asyncio.run(main)
    return uvloop.run(main)
