"""A producer in a process of its own: ``producer.py URL PREFIX USER SECONDS`` enqueues as fast as it can, for so long.

Prints ``ready``, waits for a line, and prints how many were accepted.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from streams_queue import Queue, Rejected


async def main(url: str, prefix: str, user: str, seconds: str) -> None:
    accepted = 0
    async with Queue[Any](prefix, url=url) as queue:
        print("ready", flush=True)
        sys.stdin.readline()
        end = time.monotonic() + float(seconds)
        while time.monotonic() < end:
            try:
                await queue.enqueue({"user_id": user})
            except Rejected:
                continue
            accepted += 1
    print(accepted)


asyncio.run(main(*sys.argv[1:]))
