"""A program of a sharded queue in a process of its own: ``sharded.py worker|producer URLS PREFIX LEDGER``.

The ledger is a file outside Redis, of lines: ``sent|later ID USER`` for what a producer has enqueued, to be done at
once or in an hour; ``start ID`` for what a worker has begun. Prints ``ready``; SIGTERM ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable
from typing import Any

from streams_queue import Message, ShardedQueue, Worker

Note = Callable[[str], None]


async def produce(queue: ShardedQueue[Any], note: Note, stop: asyncio.Event) -> None:
    number = 0
    while not stop.is_set():
        number += 1
        users = [{"user": f"u{number % 50}-{n}"} for n in range(5)]
        for word, delay in (("sent", None), ("later", 3600)):
            receipts = await queue.enqueue_many(users, delay=delay)
            for user, receipt in zip(users, receipts, strict=True):
                note(f"{word} {receipt.id} {user['user']}")
        one = await queue.enqueue(users[0])
        note(f"sent {one.id} {users[0]['user']}")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 0.03)


async def work(queue: ShardedQueue[Any], note: Note, stop: asyncio.Event) -> None:
    worker = Worker(queue, concurrency=8, poll_interval=0.2)

    @worker.handler
    async def handle(message: Message[Any]) -> None:
        note(f"start {message.id}")
        await asyncio.sleep(0.005)

    running = asyncio.create_task(worker.run())
    await stop.wait()
    worker.stop()
    await running


async def main(role: str, urls: str, prefix: str, ledger: str) -> None:
    def note(line: str) -> None:
        with open(ledger, "a") as file:  # noqa: PTH123  (O_APPEND: one short line is one write)
            file.write(f"{line}\n")

    stop = asyncio.Event()
    async with ShardedQueue[Any](prefix, shards=None, url=urls.split()) as queue:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        print("ready", flush=True)
        await {"worker": work, "producer": produce}[role](queue, note, stop)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
