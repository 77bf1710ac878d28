"""How fast an old queue is moved in, against XADD over one pipelined connection to the same server.

PYTHONPATH=tests python -m migrations_rate [--messages 1000000] [--server embedded]
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import redis as redis_py

import servers
from migrations.old_state import OldState
from migrations.steps import silent
from streams_queue import Queue
from streams_queue_migrations import Applied, apply, applying, verifying

PIPELINE = 1000
USERS = 10_000


def written(client: redis_py.Redis, prefix: str, messages: int) -> None:
    """Chat requests, as an old producer enqueued them."""
    state, start = OldState(client, prefix), time.time() - messages / 1000
    for n in range(messages):
        state.queued(_id(n), start + n / 1000, chat=(f"user-{n % USERS}", f"message number {n}"))
    state.flush()


def _id(n: int) -> str:
    return f"00000000-0000-4000-8000-{n:012d}"


def xadd_rate(client: redis_py.Redis, messages: int) -> float:
    """XADD a second: one connection, a thousand a round trip, the ids that the messages have."""
    began = time.perf_counter()
    for first in range(0, messages, PIPELINE):
        pipeline = client.pipeline(transaction=False)
        for n in range(first, min(first + PIPELINE, messages)):
            pipeline.xadd("rate", {"id": _id(n)})
        pipeline.execute()
    rate = messages / (time.perf_counter() - began)
    client.unlink("rate")
    return rate


async def moved(url: str, prefix: str, messages: int) -> tuple[float, float]:
    """Messages a second: moving them in alone, and with the verification."""
    ends: list[float] = []

    async def timed(*args: Any, **options: Any) -> Any:
        ends.append(time.perf_counter())
        return await verifying.look_twice(*args, **options)

    applying.look_twice = timed  # type: ignore[attr-defined]
    try:
        async with Queue(prefix, url=url) as queue:
            began = time.perf_counter()
            applied: Applied = await apply(queue, silent, silent, watch=0)
            ended = time.perf_counter()
    finally:
        applying.look_twice = verifying.look_twice  # type: ignore[attr-defined]
    assert applied.verified.clean and applied.entered == messages
    return messages / (ends[0] - began), messages / (ended - began)


def measured(server: servers.AnyServer, messages: int) -> None:
    with server.sync_client(decode_responses=False, socket_timeout=120) as client:
        for prefix in ("plain", "chat_api"):
            client.flushall()
            written(client, prefix, messages)
            xadd = xadd_rate(client, messages)
            alone, whole = asyncio.run(moved(server.url, prefix, messages))
            print(
                f"{prefix:<9} {messages:>9,} messages   XADD {xadd:>9,.0f}/s   "
                f"moved in {alone:>9,.0f}/s = {alone / xadd:.2f} x   with verification {whole:>9,.0f}/s = "
                f"{whole / xadd:.2f} x",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--server", choices=servers.NAMES, default=servers.DEFAULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        server = servers.start_any(options.server, Path(directory))
        try:
            measured(server, options.messages)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
