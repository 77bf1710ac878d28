"""``python -m bench.inserts``: rows written one by one against rows written in batches, by one worker.

The database is SQLite in a file: a transaction is on the disk when it ends. The second line leaves the database out:
what a batch saves in the queue itself.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.runs import server_at
from streams_queue import Message, Queue, Worker

CONCURRENCY = 32


class Table:
    """Where rows go."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path)
        self._database.execute("CREATE TABLE rows (n INTEGER)")

    def insert(self, messages: Sequence[Message[Any]]) -> None:
        with self._database:
            self._database.executemany("INSERT INTO rows VALUES (?)", [(message.data["n"],) for message in messages])

    def count(self) -> int:
        return int(self._database.execute("SELECT count(*) FROM rows").fetchone()[0])

    def close(self) -> None:
        self._database.close()


class Nowhere(Table):
    """The same without a database."""

    def __init__(self) -> None:
        self._count = 0

    def insert(self, messages: Sequence[Message[Any]]) -> None:
        self._count += len(messages)

    def count(self) -> int:
        return self._count

    def close(self) -> None: ...


async def measure(url: str, table: Table, count: int, size: int) -> float:
    """Messages a second, that many at a time in one transaction; 0 is a handler of one."""
    async with Queue[Any]("inserts", url=url) as queue:
        worker = Worker(queue, concurrency=CONCURRENCY)

        async def insert(message: Message[Any]) -> None:
            table.insert([message])

        async def insert_together(messages: list[Message[Any]]) -> None:
            table.insert(messages)

        if size:
            worker.batch(size=size)(insert_together)
        else:
            worker.handler(insert)
        await queue.enqueue_many([{"n": n} for n in range(count)])
        before = table.count()
        working = asyncio.create_task(worker.run())
        began = time.perf_counter()
        while table.count() < before + count or await queue.length():  # noqa: ASYNC110  (the server has no event)
            await asyncio.sleep(0.005)
        seconds = time.perf_counter() - began
        worker.stop()
        await working
    return count / seconds


def compare(name: str, url: str, table: Table, *, messages: int, size: int, pairs: int) -> None:
    """Print what came of pairs, one after the other: so a machine that gets slower gets slower for both."""
    rates = [[asyncio.run(measure(url, table, messages, at_a_time)) for at_a_time in (0, size)] for _ in range(pairs)]
    single, batched = map(statistics.median, zip(*rates, strict=True))
    ratio = statistics.median(batched / single for single, batched in rates)
    print(
        f"{name}: {single:,.0f}/s one by one, {batched:,.0f}/s in batches of {size}: {ratio:.1f} x "
        f"(median of {pairs} pairs, {messages:,} messages each)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.inserts", description=__doc__)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--url", help="an empty server for nothing else, instead of one of its own")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # what workers say of a server that is to keep nothing
    with server_at(options.url) as url, tempfile.TemporaryDirectory() as directory:
        sizes = {"messages": options.messages, "size": options.size, "pairs": options.pairs}
        table = Table(Path(directory) / "rows.db")
        compare("inserts into SQLite", url, table, **sizes)
        table.close()
        compare("without a database", url, Nowhere(), **sizes)


if __name__ == "__main__":
    main()
