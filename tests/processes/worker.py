"""A worker in a process of its own, for tests that kill it: ``worker.py URL PREFIX LEDGER [LEASE [CONCURRENCY]]``.

What a message asks for in ``do`` is done. Every run is written down in the ledger, a file outside Redis, before and
after: ``start|end ID DELIVERY PID``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

from streams_queue import Message, Queue, Worker


async def main(url: str, prefix: str, ledger: str, lease: str = "1.0", concurrency: str = "4") -> None:
    def note(word: str, message: Message[Any]) -> None:
        with open(ledger, "a") as file:  # noqa: PTH123  (O_APPEND: one short line is one write)
            file.write(f"{word} {message.id} {message.deliveries} {os.getpid()}\n")

    queue: Queue[Any] = Queue(prefix, url=url)
    async with queue:
        worker = Worker(
            queue, concurrency=int(concurrency), lease=float(lease), retry_delay=0.1, grace=5.0, poll_interval=0.2
        )

        @worker.handler
        async def handle(message: Message[Any]) -> str:
            note("start", message)
            match message.data.get("do"):
                case "die":
                    os._exit(9)
                case "wait":
                    await asyncio.sleep(message.data.get("seconds", 3600))
                case "wait once" if message.deliveries == 1:
                    await asyncio.sleep(3600)
            note("end", message)
            return f"done by {os.getpid()}"

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, worker.stop)
        print("ready", flush=True)
        await worker.run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
